"""Corrupt artefacts, ONNX files, caches, recipes, task files and records, and see what is said.

`python scripts/corruptions.py --seed 0` makes 3,400 corruptions (`--share 0.01`: a hundredth, with
`--only KIND` of one kind), each read in a process of its own, and says which end otherwise than in
one clear error or in no change: in other answers, in a traceback, in a hang, or in over 2 GB. Exit
code 1 if any does.
"""

from __future__ import annotations

import argparse
import json
import os
import pickle
import random
import resource
import shutil
import signal
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path

os.environ |= {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}

import onnxruntime  # noqa: F401 - imported once, here
import torch
import yaml
from safetensors import SafetensorError  # noqa: F401
from transformers import BertForPreTraining, BertForSequenceClassification, Trainer  # noqa: F401

from xtclib import cache, files, records
from xtclib.artefact import format, ledger
from xtclib.costs import latency
from xtclib.deployment import onnx, runtimes
from xtclib.figures import records as plots
from xtclib.recipes import recipe as recipes
from xtclib.study import compress as study
from xtclib.study import profiles
from xtclib.tasks import evaluation, glue

COUNTS = {"artefact": 2000, "onnx": 300, "cache": 300, "recipe": 300, "task": 300, "record": 200}
RECIPES = "xtc-1bit-half", "head-pruning", "tinybert-6l", "binarybert-twn", "two-of-four"
SECONDS, BYTES = 60, 2 * 10**9
CLEAR = ValueError, OSError, ImportError


def in_child(work: Callable[[], object], seconds: float = SECONDS) -> tuple[str, object]:
    """What ``work`` gives in a process of its own: ``("answer", …)``, or a fault and its words."""
    read, write = os.pipe()
    child = os.fork()
    if not child:
        os.close(read)
        found: tuple[str, object] = ("died", "")
        try:
            quiet = os.open(os.devnull, os.O_WRONLY)
            os.dup2(quiet, 1)
            os.dup2(quiet, 2)
            warnings.simplefilter("ignore")
            latency.enough = lambda *_: 3
            format.check_reopens = lambda *_, **__: None  # in a process of its own, five seconds
            found = ("answer", work())
        except CLEAR as error:
            text = str(error)
            lines, long = text.count("\n") + 1, len(text) > 600
            found = ("error", text) if lines <= 2 and not long else ("unclear", text[:300])
        except BaseException as error:
            found = ("traceback", f"{type(error).__name__}: {error}"[:300])
        finally:
            with os.fdopen(write, "wb") as pipe:
                pickle.dump(found, pipe)
            os._exit(0)
    os.close(write)
    end = time.monotonic() + seconds
    os.set_blocking(read, False)
    content, found, done = b"", ("died", "of a signal"), 0
    while not done and time.monotonic() < end:
        done, _, usage = os.wait4(child, os.WNOHANG)
        try:
            content += os.read(read, 1 << 20)
        except BlockingIOError:
            time.sleep(0.002)
    if not done:
        os.kill(child, signal.SIGKILL)
        _, _, usage = os.wait4(child, 0)
        found = ("hang", f"{seconds} s")
    else:
        while block := os.read(read, 1 << 20):
            content += block
        found = pickle.loads(content) if content else found
    os.close(read)
    grown = 1024 * (usage.ru_maxrss - resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
    return ("memory", f"{grown / 1e9:.1f} GB, {found}") if grown > BYTES else found


# What is done to files


def bytes_changed(content: bytes, draw: random.Random) -> bytes:
    """A file with a flipped bit, a hole, an end too early, or a part that is not its own."""
    if not content:
        return b"x"
    at, size = draw.randrange(len(content)), draw.choice((1, 8, 100, 5000))
    kind = draw.randrange(7)
    if kind == 0:
        return content[:at]
    if kind == 1:
        return content[:at] + bytes(min(size, len(content) - at)) + content[at + size :]
    if kind == 2:
        return content[:at] + draw.randbytes(size) + content[at:]
    if kind == 3:
        return content[:at] + content[at + size :]
    if kind == 4:
        return content + content[at : at + size]
    return content[:at] + bytes([content[at] ^ 1 << draw.randrange(8)]) + content[at + 1 :]


ODD = (
    None, True, -1, 0, 1, 2, 1.5, 10**6, 10**9, 10**30, 1e308, float("nan"), float("inf"), "", "a",
    "x" * 100_000, "<script>alert(1)</script>", "../../etc", "2", [], {}, [[]] * 3,
    {"a": {"b": []}}, list(range(1000)), "gelu", "relu", "\0", "\ud800",
)  # fmt: skip


def value_changed(value: object, draw: random.Random) -> object:
    """A nest of lists and dicts with one value, somewhere, changed, gone or added."""
    if isinstance(value, (dict, list)) and value and draw.random() < 0.85:
        changed = value.copy()
        key = draw.choice(list(value)) if isinstance(value, dict) else draw.randrange(len(value))
        kind = draw.random()
        if kind < 0.1:
            del changed[key]
        elif kind < 0.2 and isinstance(value, dict):
            changed[draw.choice(("x", "layers", "num_labels", "auto_map", "format", key * 2))] = (
                draw.choice(ODD)
            )
        else:
            changed[key] = value_changed(value[key], draw)
        return changed
    if isinstance(value, (int, float)) and not isinstance(value, bool) and draw.random() < 0.5:
        return draw.choice((value + 1, -value, value * 2, value * 10**6, str(value), value / 3))
    return draw.choice(ODD)


def text_of(value: object) -> bytes:
    return json.dumps(value, indent=2).encode("utf-8", "surrogatepass")


def header_changed(content: bytes, draw: random.Random) -> bytes:
    """A safetensors file whose header says something else, and is well formed."""
    size = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + size])
    if draw.random() < 0.5:
        one, two = draw.sample([n for n in header if n != "__metadata__"], 2)
        header[one], header[two] = header[two], header[one]
    else:
        header = value_changed(header, draw)
    text = text_of(header)
    return len(text).to_bytes(8, "little") + text + content[8 + size :]


def corrupt(folder: Path, draw: random.Random, others: list[Path] = ()) -> str:
    """Changes one file of a folder; in words, which and how."""
    there = sorted(f for f in folder.rglob("*") if f.is_file())
    often = [1 + 2 * (f.name in ("config.json", format.WEIGHTS)) for f in there]
    (file,) = draw.choices(there, often)
    name, kind = file.relative_to(folder).as_posix(), draw.random()
    if kind < 0.05:
        file.unlink()
        return f"{name} removed"
    if kind < 0.08:
        file.unlink()
        draw.choice((file.mkdir, lambda: os.mkfifo(file), lambda: file.symlink_to(file.name)))()
        return f"{name} no file"
    if kind < 0.15 and others:
        other = draw.choice(others) / name
        if other.is_file():
            shutil.copyfile(other, file)
            return f"{name} of {other.parent.name}"
    if kind < 0.2 and name.endswith(".json"):
        file.write_bytes(draw.choice((b"[" * 200_000, b'{"a":' * 100_000, b"NaN", b"[]", b'"a"')))
        return f"{name} nested or another thing"
    if kind < 0.6 and name.endswith(".json"):
        with_values = value_changed(json.loads(file.read_bytes()), draw)
        file.write_bytes(text_of(with_values))
        return f"{name} with another value"
    if kind < 0.6 and name.endswith(".safetensors"):
        file.write_bytes(header_changed(file.read_bytes(), draw))
        return f"{name} with another header"
    file.write_bytes(bytes_changed(file.read_bytes(), draw))
    return f"{name} with other bytes"


# What is read


TEXTS = ["the cook saw the nurse .", "a film", "both agree with it , and it was not bad at all"]


def answers(folder: Path) -> object:
    """An artefact's logits of a few texts, and its bytes."""
    model, tokenizer = format.load(folder)
    split = glue.Split(TEXTS, None, [0] * len(TEXTS))
    return evaluation.predict(model, tokenizer, split, 48).tolist()


def compressed(place: Path, recipe: str = RECIPES[0]) -> object:
    """What a run into a place leaves: its artefact's sums."""
    os.environ["XTC_CACHE"] = str(place / "cache")
    out = place / "out"
    study.compress(recipe, profile="smoke", budget="4steps", out=out, progress=False,
                   say=lambda text: None, device="cpu")  # fmt: skip
    return (out / files.SUMS).read_text()


def exported(folder: Path) -> object:
    onnx.export_onnx(format.load(folder)[0], folder / "model.onnx", "trained")


def onnx_answers(path: Path) -> object:
    found = runtimes.OnnxModel(path)
    ids = torch.tensor([[2, 5, 6, 7, 3]])
    return found(input_ids=ids, attention_mask=torch.ones_like(ids)).logits.tolist()


def applied(path: Path) -> object:
    """A recipe's hash, once it was tried on a small model, as `xtc compress` does first."""
    recipe = recipes.load(path)
    chosen = profiles.profile("smoke")
    data = profiles.data_for("sst2", chosen)
    teacher = profiles.stand_in(data, chosen) or profiles.teacher_for("sst2", chosen, data)
    budget = chosen.budgets["A"]
    study.check_applies(study.Job(recipe, chosen, budget, "A", 0, data, teacher, False, "cpu"))
    return None


def shown(folder: Path) -> object:
    found = records.read("smoke", folder)
    return [record.table() for record in found], plots.comparison(records.common(found)).to_html()


def case(kind: str, made: Path, place: Path, draw: random.Random) -> tuple[str, Callable, Callable]:
    """One corruption in ``place``: in words, what reads it, and what may be read: all if None."""
    names = [made / name for name in RECIPES]
    chosen = draw.choice(names)
    place.mkdir()
    if kind == "artefact":
        folder = place / "a"
        shutil.copytree(chosen / "out", folder)
        what = corrupt(folder, draw, [n / "out" for n in names if n != chosen])
        # Who edits renews the sums: a packed file's weights and config still check each other.
        file = what.partition(" ")[0]
        packed = chosen.name != "tinybert-6l" and file in ("config.json", format.WEIGHTS)
        if packed and draw.random() < 0.7 and all(f.is_file() for f in folder.iterdir()):
            files.seal(folder)
            what += ", sealed"
        read = answers if draw.random() < 0.85 else ledgered
        return f"{chosen.name}: {what}", lambda: read(folder), lambda: read(chosen / "out")
    if kind == "onnx":
        folder = made / "onnx"
        (place / "m.onnx").write_bytes(bytes_changed((folder / "model.onnx").read_bytes(), draw))
        return (
            "bytes",
            lambda: onnx_answers(place / "m.onnx"),
            lambda: onnx_answers(folder / "model.onnx"),
        )
    if kind == "cache":
        home = made / RECIPES[0]
        shutil.copytree(home / "cache", place / "cache", ignore=shutil.ignore_patterns("outs"))
        what = corrupt(place / "cache", draw)
        return what, lambda: compressed(place), lambda: (home / "out" / files.SUMS).read_text()
    if kind == "recipe":
        text = (Path(recipes.__file__).parent / f"{draw.choice(recipes.names())}.yaml").read_bytes()
        if draw.random() < 0.7:
            changed = value_changed(yaml.safe_load(text), draw)
            text = yaml.dump(changed, allow_unicode=False).encode("utf-8", "surrogatepass")
        else:
            text = bytes_changed(text, draw)
        (place / "r.yaml").write_bytes(text)
        os.environ["XTC_CACHE"] = str(made / RECIPES[0] / "cache")
        return "r.yaml", lambda: applied(place / "r.yaml"), lambda: None
    if kind == "task":
        task = draw.choice(("sst2", "cola", "stsb", "mrpc", "mnli"))
        source = cache.BUILT_IN / glue.TASKS[task].title
        if not source.is_dir():
            source, task = cache.BUILT_IN / "SST-2", "sst2"
        target = place / source.name
        target.mkdir()
        for file in source.glob("*.tsv"):
            lines = file.read_bytes().split(b"\n")[:60]
            (target / file.name).write_bytes(b"\n".join([*lines, b""]))
        what = corrupt(target, draw)
        return f"{task} {what}", lambda: glue.load(task, place) and None, lambda: None
    target = place / "records"
    shutil.copytree(made / "records", target)
    what = corrupt(target, draw)
    return what, lambda: shown(target) and None, lambda: None


def ledgered(folder: Path) -> object:
    return ledger.table(ledger.byte_ledger(folder))


def prepare(made: Path) -> None:
    for name in RECIPES:
        (made / name).mkdir()
        kind, said = in_child(lambda name=name: compressed(made / name, name), 300)
        assert kind == "answer", said
    kind, said = in_child(lambda: recorded(made), 300)
    assert kind == "answer", said
    shutil.copytree(made / RECIPES[0] / "out", made / "onnx")
    kind, said = in_child(lambda: exported(made / "onnx"), 300)
    assert kind == "answer", said


def recorded(made: Path) -> None:
    os.environ["XTC_CACHE"] = str(made / RECIPES[0] / "cache")
    for seed in (0, 1):
        run = study.compress(RECIPES[0], profile="smoke", budget="4steps", seed=seed,
                             progress=False, say=lambda text: None, device="cpu")  # fmt: skip
        run.record.save(made / "records")


def main(seed: int, share: float, only: str | None, loud: bool) -> int:
    torch.set_num_threads(1)
    faults = 0
    with tempfile.TemporaryDirectory() as temporary:
        made = Path(temporary) / "made"
        made.mkdir()
        prepare(made)
        wanted: dict[str, object] = {}
        for kind, count in COUNTS.items():
            if only not in (None, kind):
                continue
            found = {"same": 0, "error": 0}
            for number in range(max(round(count * share), 1)):
                draw = random.Random(f"{seed} {kind} {number}")
                place = Path(temporary) / f"{kind}-{number}"
                what, read, right = case(kind, made, place, draw)
                name, said = in_child(read)
                if name == "answer":
                    about = f"{kind} {what.partition(':')[0] if kind == 'artefact' else ''}"
                    about += " ledger" if isinstance(said, str) and kind == "artefact" else ""
                    if about not in wanted:
                        wanted[about] = in_child(right)[1]
                    name = "same" if said == wanted[about] else "other answers"
                if name not in ("same", "error"):
                    faults += 1
                    print(f"{kind} {number} of seed {seed}, {what}: {name}: {str(said)[:300]}",
                          flush=True)  # fmt: skip
                if loud and name == "error":
                    print(f"  {what}: {said}")
                found[name] = found.get(name, 0) + 1
                shutil.rmtree(place, ignore_errors=True)
            print(f"{kind}: {found}", flush=True)
    return 1 if faults else 0


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--share", type=float, default=1.0)
    parser.add_argument("--only", choices=COUNTS)
    parser.add_argument("--loud", action="store_true", help="print the clear errors too")
    sys.exit(main(**vars(parser.parse_args())))
