"""What the benchmarks share: options, models of random weights, and the JSON they write."""

from __future__ import annotations

import argparse
import shutil

import torch
import transformers
from transformers import AutoModelForSequenceClassification, PretrainedConfig, PreTrainedModel

from xtclib import artefact, files, records
from xtclib.costs import architectures
from xtclib.techniques import LayerReduction, Quantize, Storage, apply_all


def shapes(text: str) -> list[tuple[int, int]]:
    """Batch and length of each of ``1x128,8x128``."""
    pairs = (shape.partition("x") for shape in text.split(","))
    return [(int(batch), int(length)) for batch, _, length in pairs]


def options(doc: str, **defaults) -> argparse.Namespace:
    """Options by their defaults, ``None`` for one that must be given; transformers is silenced."""
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=doc, formatter_class=raw)
    for name, default in defaults.items():
        kind = shapes if name == "shapes" else str if default is None else type(default)
        told = {"type": kind, "default": default, "required": default is None}
        parser.add_argument(f"--{name.replace('_', '-')}", help=f"default: {default}", **told)
    transformers.logging.disable_progress_bar()
    transformers.logging.set_verbosity_error()
    return parser.parse_args()


def random_model(shape: str | PretrainedConfig, layers: int = 0) -> PreTrainedModel:
    """Random weights of a catalogue shape or a config; ``layers``: so many of them."""
    torch.manual_seed(0)
    config = architectures.config_of(shape) if isinstance(shape, str) else shape
    model = AutoModelForSequenceClassification.from_config(config).eval()
    if layers and layers != model.config.num_hidden_layers:
        model = LayerReduction(layers=layers).apply(model).eval()
    return model


def one_bit(model: PreTrainedModel) -> PreTrainedModel:
    """The model as XTC stores it: 1-bit layers and words, pooler and positions at 8 bits."""
    chosen = [Quantize(), Storage(pooler="int8-row", positions="int8-row")]
    return artefact.finalize(apply_all(model, chosen), chosen).eval()


def chromium() -> str | None:
    """The path of an installed Chromium."""
    names = ("chromium", "chromium-browser", "google-chrome", "chrome")
    return next(filter(None, map(shutil.which, names)), None)


def write(path: str, found: dict, *packages: str) -> None:
    """Writes what was found, with machine, versions and commit, if there is a path."""
    if path:
        files.write_json(path, found | records.circumstances(*packages))
