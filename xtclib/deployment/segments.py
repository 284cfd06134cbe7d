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
from xtclib.deployment.graph import SUM, check_sum, with_sum
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

    Weights stay packed, as in :func:`.onnx.export_onnx`, whose ``activations`` these are. An old
    folder survives a failure. Raises ``ValueError`` for a model without exits, ``TypeError`` for
    one whose layers take more than states and a mask.
    """
    if not hasattr(model, "exits"):
        raise ValueError("the model has no exits: `export_onnx` writes it as one file")
    if any(part_names(la)["query"] != "attention.self.query" for la in encoder_layers(model)):
        kind = f"{type(model).__name__} gives its layers more than states and a mask"
        raise TypeError(f"{kind}: segments are of BERT, RoBERTa, XLM-R or ELECTRA")
    model = onnx.prepared(model, activations)
    about = onnx.about(model, activations)
    said = json.loads(about["xtc"]) | {"exits": model.config.exits, "kind": kind_of(model.config),
                                        "depth": model.exits.depth}  # fmt: skip
    example = onnx.example_of(model)
    states = torch.zeros(*example["attention_mask"].shape, model.config.hidden_size)
    with staged_folder(Path(folder), replace=True) as partial, onnx.masked(model):
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
    return Path(folder)


class SegmentedModel(nn.Module):
    """Exported segments in ONNX Runtime, called like the model they came from.

    ``model(input_ids, attention_mask, token_type_ids)`` gives ``logits`` and ``layers``, after how
    many each row left; ``threshold`` may be set. Raises ``FileNotFoundError`` for a folder without
    segments and ``ValueError`` for damaged files.
    """

    device = torch.device("cpu")

    def __init__(self, folder: str | Path, threads: int | None = None) -> None:
        super().__init__()
        import onnxruntime

        paths = sorted(Path(folder).glob("*.onnx"), key=lambda p: int(p.stem))
        if not paths:
            raise FileNotFoundError(f"no segments in {folder}: write them by `xtc export`")
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads or torch.get_num_threads()
        options.log_severity_level = 4
        for path in paths:
            check_sum(path)
        make = onnxruntime.InferenceSession
        self.sessions = [make(str(p), options, providers=["CPUExecutionProvider"]) for p in paths]
        about = json.loads(self.sessions[0].get_modelmeta().custom_metadata_map["xtc"])
        self.exits, self.kind, self.labels = about["exits"], about["kind"], about["labels"]
        self.threshold, self.depth = self.exits["threshold"], about["depth"]
        if len(paths) != len(self.exits["after"]) + 1:
            expected = f"{len(self.exits['after']) + 1} segments in {folder}"
            raise ValueError(f"expected {expected}, found {len(paths)}: export again")

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
    ) -> SequenceClassifierOutput:  # fmt: skip
        mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask
        types = torch.zeros_like(input_ids) if token_type_ids is None else token_type_ids
        feeds = dict(zip(onnx.INPUTS, (t.long().numpy() for t in (input_ids, mask, types)),
                         strict=True))  # fmt: skip
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
