"""A model with exits in ONNX Runtime: one file a segment, and a driver between them.

A segment is the layers up to an exit and the exit's classifier. ONNX's ``If`` would decide for a
whole batch; a driver takes the rows that have left out of it, so that the next segment runs on
fewer.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.modeling_outputs import SequenceClassifierOutput

from xtclib.bert import encoder_layers, part_names
from xtclib.deployment import onnx
from xtclib.deployment.graph import SUM, with_sum
from xtclib.deployment.runtimes import feeds_of, opened
from xtclib.files import staged_folder, write_bytes
from xtclib.techniques.dynamic.criteria import Judge, bar_of
from xtclib.techniques.dynamic.exits import kind_of

STATES = "hidden_states"


class _Segment(nn.Module):
    """Some layers of a model and the classifier behind them, as a function of named inputs."""

    def __init__(self, model: PreTrainedModel, number: int, inputs: list[str]) -> None:
        super().__init__()
        exits, layers = model.exits, list(encoder_layers(model))
        ends = [0, *exits.after, exits.depth]
        self.layers = nn.ModuleList(layers[ends[number] : ends[number + 1]])
        self.model, self.inputs, self.number = model, inputs, number
        self.is_last = number == len(exits.after)

    def forward(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        given, base = dict(zip(self.inputs, tensors, strict=True)), self.model.base_model
        mask = onnx.padding_mask(given["attention_mask"])
        states = given.get(STATES)
        if states is None:
            words = {n: given[n] for n in ("input_ids", "token_type_ids") if n in given}
            states = base.embeddings(**words)
            states = getattr(base, "embeddings_project", nn.Identity())(states)
        for layer in self.layers:
            states = layer(states, mask)
        if self.is_last:
            pooler = getattr(base, "pooler", None)
            return (self.model.classifier(states if pooler is None else pooler(states)),)
        exits = self.model.exits
        exits.mask = given["attention_mask"]
        vector = exits.vector(states)
        certain = exits.certain_of(vector)
        answer = exits.heads[self.number](vector)
        return (answer, states) if certain is None else (answer, states, certain)


def export_segments(
    model: PreTrainedModel, folder: str | Path, activations: str = "dynamic"
) -> Path:
    """Writes a model with exits as ``0.onnx``, ``1.onnx``, …, one a segment; returns the folder.

    Weights stay packed, as in :func:`.onnx.export_onnx`, whose ``activations`` these are. An older
    folder of segments is replaced, and survives a failure. Raises ``ValueError`` for a model
    without exits and for a folder that holds anything else, ``TypeError`` for a model whose layers
    take more than states and a mask.
    """
    folder = Path(folder)
    if not hasattr(model, "exits"):
        raise ValueError("the model has no exits: `export_onnx` writes it as one file")
    others = {*folder.iterdir()} - {*segments_in(folder)} if folder.is_dir() else set()
    if others or folder.suffix == ".onnx" or folder.is_file():
        holds = f" and holds {min(others).name}" if others else ""
        raise ValueError(f"{folder} is no folder of segments{holds}: name a new folder")
    if any(part_names(la)["query"] != "attention.self.query" for la in encoder_layers(model)):
        kind = f"{type(model).__name__} gives its layers more than states and a mask"
        raise TypeError(f"{kind}: segments are of BERT, RoBERTa, XLM-R or ELECTRA")
    model = onnx.prepared(model, activations)
    about = onnx.about(model, activations)
    said = json.loads(about["xtc"]) | {"exits": model.config.exits, "kind": kind_of(model.config),
                                        "depth": model.exits.depth}  # fmt: skip
    example = onnx.example_of(model)
    states = torch.zeros(*example["attention_mask"].shape, model.config.hidden_size)
    with staged_folder(folder, replace=True) as partial, onnx.masked(model):
        for number in range(len(model.exits.heads) + 1):
            given = dict(example)
            if number:
                given = {STATES: states, "attention_mask": example["attention_mask"]}
            segment = _Segment(model, number, list(given))
            outputs = ["logits", STATES] if not segment.is_last else ["logits"]
            if model.exits.certainty is not None and not segment.is_last:
                outputs.append("certainty")
            names = [f"{n}_out" if n == STATES else n for n in outputs]
            content = onnx.trace(segment, given, names, {"xtc": json.dumps(said), SUM: "0" * 64})
            write_bytes(partial / f"{number}.onnx", with_sum(content))
    return folder


def segments_in(folder: Path) -> list[Path]:
    """The segments in a folder, in their order."""
    found = (path for path in folder.glob("*.onnx") if path.stem.isdigit())
    return sorted(found, key=lambda path: int(path.stem))


class SegmentedModel(nn.Module):
    """Exported segments in ONNX Runtime, called like the model they came from.

    ``model(input_ids, attention_mask, token_type_ids)`` gives ``logits`` and ``layers``, after how
    many each row left; ``threshold`` may be set. Raises ``FileNotFoundError`` for a folder without
    segments and ``ValueError`` for damaged files.
    """

    device = torch.device("cpu")

    def __init__(self, folder: str | Path, threads: int | None = None) -> None:
        super().__init__()
        paths = segments_in(Path(folder))
        if not paths:
            raise FileNotFoundError(f"no segments in {folder}: write them by `xtc export`")
        found = [opened(path, threads) for path in paths]
        self.sessions, about = [session for session, _ in found], found[0][1]
        self.max_length: int | None = about["max_length"]
        self.exits, self.kind, self.labels = about["exits"], about["kind"], about["labels"]
        self.threshold, self.depth = self.exits["threshold"], about["depth"]
        if len(paths) != len(self.exits["after"]) + 1:
            expected = f"{len(self.exits['after']) + 1} segments in {folder}"
            raise ValueError(f"expected {expected}, found {len(paths)}: export again")

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
    ) -> SequenceClassifierOutput:  # fmt: skip
        feeds = feeds_of(self.max_length, input_ids, attention_mask, token_type_ids)
        bar = bar_of(self.exits["criterion"], self.threshold)
        judge = Judge(self.exits["criterion"], self.kind, self.exits["tolerance"])
        rows = np.arange(len(input_ids))
        left, found = np.zeros(len(rows), dtype=np.int64), None
        for number, session in enumerate(self.sessions):
            named = {value.name: feeds[value.name] for value in session.get_inputs()}
            logits, *others = session.run(None, named)
            found = np.zeros((len(left), logits.shape[1]), np.float32) if found is None else found
            if not others:
                found[rows], left[rows] = logits, self.depth
                break
            certain = torch.from_numpy(others[1]) if len(others) > 1 else None
            sure = judge.sure(torch.from_numpy(logits), certain).numpy()
            gone = sure > bar
            found[rows[gone]], left[rows[gone]] = logits[gone], self.exits["after"][number]
            if gone.all():
                break
            rows, feeds = rows[~gone], {n: x[~gone] for n, x in feeds.items()}
            feeds[STATES] = others[0][~gone]
            judge.keep(torch.from_numpy(~gone))
        output = SequenceClassifierOutput(logits=torch.from_numpy(found))
        output["layers"] = torch.from_numpy(left)
        return output


def export(model: PreTrainedModel, folder: Path, out: Path | None = None,
           activations: str = "dynamic") -> tuple[Path, int]:  # fmt: skip
    """Writes ``model.onnx``, or ``segments`` of a model with exits; returns where, and its bytes.

    Into ``folder``, or to ``out``.
    """
    if not hasattr(model, "exits"):
        path = onnx.export_onnx(model, out or folder / "model.onnx", activations)
        return path, path.stat().st_size
    path = export_segments(model, out or folder / "segments", activations)
    return path, sum(file.stat().st_size for file in path.glob("*.onnx"))
