"""A model as a folder of static files that a browser runs: type, and see what it answers.

``xtc export FOLDER --web OUT``, then ``python -m http.server -d OUT``. Nothing that is typed leaves
the page, and nothing is asked of another host. OUT holds the page (``page/``), ``about.json``
(labels, kind of head, longest length), the still-packed ONNX file, the tokenizer, and what the page
needs of two npm packages: ONNX Runtime's WASM build and the tokenizers, fetched once, checked by
the sha512 below, and cached. Large files are stored gzipped, as plain servers compress nothing.
It runs in a worker, on one thread: two were slower (``benchmarks/web.py`` times it against native).

In the page, ``window.xtc`` has ``ready``, ``ids(text, pair)``, ``classify(texts, pairs)`` and
``about``; the first three give promises.
"""

from __future__ import annotations

import gzip
import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from xtclib import bert
from xtclib.artefact import format
from xtclib.deployment import onnx
from xtclib.deployment.npm import Package, fetch_all
from xtclib.files import (
    check_new_folder,
    folder_bytes,
    seal,
    staged_folder,
    write_bytes,
    write_json,
)
from xtclib.tasks import glue

PAGE = Path(__file__).with_name("page")
PACKAGES = (
    Package(
        "onnxruntime-web", "1.30.0", 33_106_585,
        "q0y+JrrtukXSzsBWEMccVfqX25LRmosXHF+CaRJmg8pZClzcV7svNc4rKY3jL02Vb7QmRMDs1SigqR4CXAfKYQ==",
        ("dist/ort.wasm.bundle.min.mjs", "dist/ort-wasm-simd-threaded.wasm"),
    ),  # its archive holds no licence: that is in page/
    Package(
        "@huggingface/tokenizers", "0.2.0", 87_011,
        "LidMHe1FpcSYH4vcSjXooda34pC0M8m1gmDOv7SQi6Iv+ib1zX7J3sHBCC9/3FPCkn2k1b55FneVqMRxrr99pg==",
        ("dist/tokenizers.min.mjs", "LICENSE"),
    ),
)  # fmt: skip
KINDS = {"single_label_classification": "classes", "multi_label_classification": "labels",
         "regression": "number"}  # fmt: skip
OTHER_HEADS = ("ForTokenClassification", "ForQuestionAnswering", "ForMaskedLM")
MODELS = ("WordPiece", "BPE", "Unigram")  # of tokenizers
WORTH = 0.98  # a model is gzipped if that leaves less of it
# By these the page sees whether it reads as Python does.
PROBES = (
    "", "Café \u200bnaïve, ΣΑΣ!", "東京𠀀 \u202eשלום 👩\u200d👩\u200d👧 e\u0301\t\x01", "w" * 101,
    "so " * 600,
)  # fmt: skip
LONGEST = 512  # tokens, where neither model nor tokenizer has a bound


def check_head(model: PreTrainedModel, folder: Path) -> str:
    """The kind of answer a page can show: ``classes``, ``labels`` or ``number``.

    Raises ``ValueError`` for another head, and for exits.
    """
    one = "a page shows one file that gives classes, labels or a number for a text"
    if hasattr(model, "exits") or hasattr(model, "drops"):
        what = "leaves by exits" if hasattr(model, "exits") else "drops tokens"
        raise ValueError(f"{folder} {what}, which no single file does: {one}")
    other = any(word in type(model).__name__ for word in OTHER_HEADS)
    if other or bert.has_no_head(model):
        raise ValueError(f"{folder} is a {type(model).__name__}: {one}")
    config = model.config
    return KINDS.get(config.problem_type or "", "classes" if config.num_labels > 1 else "number")


def check_tokenizer(tokenizer: PreTrainedTokenizerBase) -> dict[str, Any]:
    """What its ``tokenizer.json`` says; ``ValueError`` for one that no browser has."""
    if not tokenizer.is_fast:
        raise ValueError(f"{type(tokenizer).__name__} has no tokenizer.json: save a fast one")
    said = json.loads(tokenizer.backend_tokenizer.to_str())
    if (kind := said["model"].get("type")) not in MODELS:
        raise ValueError(f"tokenizers of a {kind} do not run in browsers, {', '.join(MODELS)} do")
    return said


def reads_pairs(trained_on: Mapping[str, Any]) -> bool:
    """Whether a model was trained on two texts a row.

    >>> reads_pairs({"task": "mrpc"}), reads_pairs({"task": "sst2"})
    (True, False)
    """
    if "own" in trained_on:
        return bool((trained_on["own"] or {}).get("text_pair"))
    files = glue.FILES.get(trained_on.get("task", ""))
    return files is not None and files.is_pair


def export(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, out: str | Path, name: str = "",
    activations: str = "dynamic", tell: Callable[[str], object] = print,
) -> Path:  # fmt: skip
    """Writes the folder, whole or not at all; returns it.

    ``name``: what errors and the page call the model. Raises as :func:`check_head`,
    :func:`check_tokenizer`, :func:`.npm.fetch_all`, :func:`.onnx.export_onnx` and
    ``check_new_folder`` do.
    """
    out = Path(out)
    kind = check_head(model, Path(name or type(model).__name__))
    words = check_tokenizer(tokenizer)
    if out.suffix == ".onnx":
        raise ValueError(f"cannot write a page to {out}: expected the name of a new folder")
    if activations not in onnx.ACTIVATIONS:
        known = ", ".join(onnx.ACTIVATIONS)
        raise ValueError(f"activations must be one of {known}, received {activations!r}")
    check_new_folder(out)
    packages = fetch_all(PACKAGES, tell)
    with staged_folder(out) as partial:
        for file in PAGE.iterdir():
            shutil.copyfile(file, partial / file.name)
        for package, folder in zip(PACKAGES, packages, strict=True):
            licence = f"LICENSE-{package.name.strip('@').replace('/', '-')}.txt"
            for kept in package.kept:
                shutil.copyfile(folder / kept, partial / (licence if kept == "LICENSE" else kept))
        onnx.export_onnx(model, partial / "model.onnx", activations)
        content = (partial / "model.onnx").read_bytes()
        if len(packed := gzip.compress(content, mtime=0)) < WORTH * len(content):
            (partial / "model.onnx").unlink()
            write_bytes(partial / "model.onnx.gz", packed)
        words |= {"truncation": None, "padding": None, "decoder": None}
        text = json.dumps(words, ensure_ascii=False, separators=(",", ":"))
        write_bytes(partial / "tokenizer.json.gz", gzip.compress(text.encode(), mtime=0))
        write_json(partial / "about.json", _about(model, tokenizer, kind, name, partial))
        seal(partial)
    tell(f"web      {out} ({folder_bytes(out) / 1e6:.2f} MB): python -m http.server -d {out}")
    return out


def _about(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, kind: str, name: str,
           folder: Path) -> dict[str, Any]:  # fmt: skip
    """What the page has to know, as JSON."""
    trained_on = getattr(model.config, "trained_on", None) or {}
    longest = min(tokenizer.model_max_length, bert.longest(model) or 10**9)
    longest = longest if longest < 10**9 else LONGEST
    pair = reads_pairs(trained_on)
    given = [list(PROBES)] + [list(reversed(PROBES))] * pair
    read = tokenizer(*given, truncation=True, max_length=longest)["input_ids"]
    seconds = given[1] if pair else [None] * len(PROBES)
    rows = zip(PROBES, seconds, read, strict=True)
    probes = [{"text": text, "pair": second, "ids": ids} for text, second, ids in rows]
    parts = {
        "model": [file.name for file in folder.glob("model.onnx*")],
        "tokenizer": ["tokenizer.json.gz"],
        "runtime": [kept for p in PACKAGES for kept in p.kept if kept != "LICENSE"],
    }
    return {
        "name": name, "task": trained_on.get("task"), "kind": kind, "pair": pair,
        "labels": [str(label) for label in model.config.id2label.values()],
        "max_length": longest, "truncate": tokenizer.truncation_side,
        "inputs": list(onnx.example_of(model)), "probes": probes,
        "files": {part: {file: (folder / file).stat().st_size for file in files}
                  for part, files in parts.items()},
    }  # fmt: skip


def export_folder(folder: Path, out: Path, other: Path | None = None, activations: str = "dynamic",
                  tell: Callable[[str], object] = print) -> Path:  # fmt: skip
    """:func:`export` of an artefact's folder, as ``xtc export --web`` has it.

    Raises ``ValueError`` where another target (``other``) is named beside it, and for a file.
    """
    if other is not None:
        raise ValueError(f"received --out {other} and --web {out}: name one of them")
    if folder.is_file() or folder.suffix == ".onnx":
        raise ValueError(f"{folder} is no artefact's folder, which a page needs for its tokenizer")
    return export(*format.load(folder), out, folder.absolute().name, activations, tell)
