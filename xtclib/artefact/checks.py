"""What an artefact's file has to be before a model is made of it.

Checksums of every tensor, their shapes and types against the model's, and what ``config.json`` says
against what it said when the weights were written. Every fault is a ``ValueError`` that names it.
"""

from __future__ import annotations

import copy
import json
import warnings
from pathlib import Path

import torch
from torch import Tensor
from transformers import PretrainedConfig, PreTrainedModel

from xtclib.bert import LARGEST, read_config
from xtclib.cache import digest, opened
from xtclib.config import short
from xtclib.files import SUMS, fault
from xtclib.techniques.base import Stored, held
from xtclib.techniques.pruning.surgery import saved_widths

WEIGHTS = "model.safetensors"
# What transformers and tokenizers read where it lies beside the rest.
_READ_TOO = (
    "config.json model.safetensors model.safetensors.index.json adapter_config.json vocab.txt "
    "vocab.json merges.txt tokenizer.json tokenizer_config.json special_tokens_map.json "
    "added_tokens.json sentencepiece.bpe.model spiece.model tokenizer.model"
).split()
_ALTERED = "the file was altered or damaged, copy the artefact again"
_DAMAGED = "the model was damaged before it was saved, pack it again"
# What of a config decides the numbers and what they mean, over all families; a model lacks some.
_NUMERIC = (
    "model_type hidden_size num_hidden_layers num_attention_heads intermediate_size hidden_act "
    "layer_norm_eps vocab_size max_position_embeddings type_vocab_size embedding_size "
    "pad_token_id is_decoder add_cross_attention id2label activation sinusoidal_pos_embds "
    "normalization_type classifier_activation trigram_input num_feedforward_networks "
    "use_bottleneck use_bottleneck_attention key_query_shared_bottleneck "
    "relative_attention_num_buckets relative_attention max_relative_positions position_buckets "
    "pos_att_type share_att_key norm_rel_ebd position_biased_input conv_kernel_size conv_groups "
    "conv_act pooler_hidden_act num_hidden_groups inner_group_num hidden_activation norm_eps "
    "layer_types local_attention rope_parameters classifier_pooling ranks segments schemes"
).split()


def numeric(config: PretrainedConfig) -> dict:
    found = {name: getattr(config, name) for name in _NUMERIC if hasattr(config, name)}
    layers = saved_widths(config)
    return {**found, "techniques": held(config), **({"layers": layers} if layers else {})}


def check_layers(layers: object) -> list[dict[str, int]]:
    """``layers`` of a ``quantization_config``; ``ValueError`` for what are no widths of layers."""
    names = {"heads", "neurons", "head_size"}
    found: list = list(layers) if isinstance(layers, (list, tuple)) else [layers]
    for width in found:
        right = isinstance(width, dict) and {"heads", "neurons"} <= width.keys() <= names
        if not right or not all(type(n) is int and 0 < n <= LARGEST for n in width.values()):
            raise ValueError(
                "layers of quantization_config must be a list of {heads, neurons[, head_size]}, "
                f"whole numbers from 1, received {short(width)}: {_ALTERED}"
            )
    return found


def check_sums(folder: Path, but: str = "") -> None:
    """Raises ``ValueError`` for a file that is not what ``SHA256SUMS`` says, if there is one.

    And for one that it does not list, which would change what the others mean. ``but``: packed
    weights, whose tensors have sums of their own, checked as they are read.
    """
    if not (folder / SUMS).is_file():
        return
    cure = f"if you changed it, renew the sums: (cd {folder} && sha256sum * > {SUMS})"
    if why := fault(folder, but):
        raise ValueError(f"{folder}: {why}: copy the artefact again; {cure}")
    listed = {line[66:] for line in (folder / SUMS).read_text(encoding="utf-8").splitlines()}
    for name in sorted({file.name for file in folder.iterdir()} - listed):
        if name in _READ_TOO:
            raise ValueError(f"{folder}: {name} is not listed in {SUMS}: remove it; {cure}")


def check_files(paths: list[Path]) -> dict[str, Tensor]:
    """Shapes and types of the tensors in an artefact's file, without values, after checking all.

    Or files, where they were saved in parts. Raises ``ValueError`` for a missing, truncated,
    foreign or altered file, and for NaN in it.
    """
    shapes: dict[str, Tensor] = {}
    sums: dict[str, str] = {}
    for path in paths:
        if not path.is_file():
            raise ValueError(
                f"no {path.name} at {path.parent}: the artefact's folder is incomplete"
            )
        with opened(path) as file:
            found = _metadata(file, "xtc")
            if found is None:
                raise ValueError(
                    f"{path.name} in {path.parent.name} carries no checksums of an xtc artefact: "
                    "it was written by another program; load it with its own, or pack it again"
                )
            sums |= found  # the same in each
            for name in sorted(file.keys()):
                tensor = file.get_tensor(name)
                if fault := _fault(name, tensor, sums.get(name)):
                    raise ValueError(f"{path.name}: tensor {name!r} {fault}")
                shapes[name] = tensor.to("meta")
    if missing := sorted(sums.keys() - shapes):
        raise ValueError(f"{paths[0].name}: tensor {missing[0]!r} is missing; {_ALTERED}")
    return shapes


def _fault(name: str, tensor: Tensor, checksum: str | None) -> str:
    """What is wrong with a tensor of a file; empty where nothing is."""
    if checksum is None:
        return f"is extra; {_ALTERED}"
    if digest(tensor) != checksum:
        return f"does not match its sha256; {_ALTERED}"
    if tensor.is_floating_point() and not bool(tensor.isfinite().all()):
        return f"holds NaN or infinite values; {_DAMAGED}"
    if name.endswith("weight_scale") and bool((tensor < 0).any()):
        return f"holds a scale below 0; {_DAMAGED}"
    return ""


def _metadata(file, key: str) -> dict | None:
    """One JSON object of a file's metadata; ``None`` if it is absent, ``ValueError`` if broken."""
    text = (file.metadata() or {}).get(key)
    try:
        found = None if text is None else json.loads(text)
    except json.JSONDecodeError:
        found = text
    if found is not None and not isinstance(found, dict):
        raise ValueError(f"the metadata {key!r} of {WEIGHTS} cannot be read; {_ALTERED}")
    return found


def check_config(config: PretrainedConfig, path: Path) -> None:
    """``config.json`` must say of the computation what it said when the weights were written."""
    with opened(path) as file:
        written = _metadata(file, "xtc_config") or {}
    here = json.loads(json.dumps(numeric(config)))
    for name, value in {"layers": None, **written}.items():
        if (name in here or name == "layers") and here.get(name) != value:
            raise ValueError(
                f"config.json says {name}={short(here.get(name))}, but {path.name} was "
                f"written with {short(value)}: one of them was altered, copy the artefact again"
            )


def check_given(config: PretrainedConfig, path: Path) -> None:
    """The same for the config that a model is loaded with: other labels may be given there.

    As many under other names are told in a warning; another number makes a new head, which
    ``ignore_mismatched_sizes=True`` asks ``transformers`` for.
    """
    on_disk = read_config(path.parent)
    check_config(on_disk, path)
    if len(config.id2label) == len(on_disk.id2label) and config.id2label != on_disk.id2label:
        before, now = (list(c.id2label.values()) for c in (on_disk, config))
        warnings.warn(f"the labels {before} are called {now} here, as given", stacklevel=2)
    given = copy.copy(config)
    given.id2label = on_disk.id2label
    check_config(given, path)


def make_room_(model: PreTrainedModel, shapes: dict[str, Tensor]) -> None:
    """Some sizes are in the file alone, such as how many values a sparse matrix keeps."""
    own: dict[str, dict[str, tuple[int, ...]]] = {}
    for tensor, on_disk in shapes.items():
        owner, _, last = tensor.rpartition(".")
        own.setdefault(owner, {})[last] = on_disk.shape
    for name, module in model.named_modules():
        if isinstance(module, Stored):
            module.make_room_(own.get(name) or own.get(f"{model.base_model_prefix}.{name}", {}))


def check_tensors(model: PreTrainedModel, shapes: dict[str, Tensor], path: Path) -> None:
    """Missing and unexpected tensors are errors: nothing may be initialised at random."""
    wanted = model.state_dict()
    base = model.base_model_prefix + "."
    if model.base_model is model:  # AutoModel: the same tensors without head and prefix
        under = {k.removeprefix(base): v for k, v in shapes.items() if k.startswith(base)}
        shapes = under or shapes  # or it was saved so
        # RoBERTa's classifiers have no pooler, and `transformers` makes and announces one.
        wanted = {k: v for k, v in wanted.items() if k in shapes or not k.startswith("pooler.")}
    missing, unexpected = sorted(wanted.keys() - shapes), sorted(shapes.keys() - wanted)
    if missing or unexpected:
        raise ValueError(
            f"{path.name} does not fit {type(model).__name__}: missing {missing[:3] or 'nothing'}, "
            f"unexpected {unexpected[:3] or 'nothing'} ({len(missing)} and {len(unexpected)} in "
            "all); its config.json may belong to another file, or the class to another head"
        )
    for name, tensor in wanted.items():
        if model.base_model is not model and not name.startswith(base):
            continue  # another number of labels: `transformers` refuses it, or makes a new head
        found, fault = shapes[name], ""
        kind = torch.float16 if tensor.is_floating_point() else tensor.dtype
        if found.shape != tensor.shape:
            fault = f"has shape {tuple(found.shape)}, but config.json makes it {(*tensor.shape,)}"
        elif found.dtype != kind:
            fault = f"is of type {found.dtype}, expected {kind}"
        if fault:
            raise ValueError(f"{path.name}: tensor {name!r} {fault}: {_ALTERED}")
