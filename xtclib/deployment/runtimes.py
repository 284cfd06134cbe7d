"""One model in many runtimes: what each stores, how long each takes, how far their answers differ.

==========================  ====================================================================
runtime                     what runs
==========================  ====================================================================
PyTorch fp32, bf16          the model before compression
PyTorch dynamic int8        ``torch.ao.quantization.quantize_dynamic`` of its linear layers
PyTorch packed              the compressed model as it loads: int8 products, the trained scheme
ONNX fp32, ONNX int8        the uncompressed model; ONNX Runtime's own dynamic quantization of it
ONNX packed                 the compressed model, uint8 activations, one scale per tensor
ONNX packed as trained      the compressed model, activations as in training
==========================  ====================================================================
"""

from __future__ import annotations

import contextlib
import copy
import io
import json
import tempfile
import warnings
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.modeling_outputs import SequenceClassifierOutput

from xtclib.bert import encoder_layers
from xtclib.clock import in_turns
from xtclib.costs.latency import random_ids
from xtclib.deployment import onnx
from xtclib.deployment.graph import check_sum, quiet
from xtclib.files import unknown

RUNTIMES = (
    "PyTorch fp32", "PyTorch bf16", "PyTorch dynamic int8", "PyTorch packed", "ONNX fp32",
    "ONNX int8", "ONNX packed", "ONNX packed as trained",
)  # fmt: skip


@dataclass(frozen=True)
class Runtime:
    """A model ready to run, called with ids of shape (batch, length), and its bytes as stored."""

    name: str
    bytes: int
    run: Callable[..., object]


def runtimes(
    model: PreTrainedModel, packed: PreTrainedModel, names: Iterable[str] = RUNTIMES
) -> list[Runtime]:
    """A model and its packed student in the runtimes of these names.

    Bytes are of the weights' file: ``model.safetensors``, the ``.onnx``, for PyTorch's dynamic int8
    the state as ``torch.save`` writes it (to memory: nothing here writes a pickle to disk).

    Raises ``ValueError`` for an unknown name, ``ImportError`` where ONNX Runtime is missing.
    """
    names = list(names)
    for name in names:
        if name not in RUNTIMES:
            raise unknown("runtime", name, RUNTIMES)
    model, packed = model.cpu().eval(), packed.cpu().eval()
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PyTorch calls its own dynamic quantization deprecated
        return [_make(name, model, packed, Path(folder)) for name in names]


def _make(name: str, model: PreTrainedModel, packed: PreTrainedModel, folder: Path) -> Runtime:
    if name.startswith("ONNX"):
        return _onnx(name, model, packed, folder)
    if name == "PyTorch dynamic int8":
        # A copy without what only an export or a trainer needs; linear layers alone are replaced.
        dynamic = torch.ao.quantization.quantize_dynamic(model, {nn.Linear}, torch.qint8)
        stored = io.BytesIO()
        torch.save(dynamic.state_dict(), stored)
        return Runtime(name, len(stored.getvalue()), dynamic)
    found = {"PyTorch fp32": model, "PyTorch packed": packed}.get(name)
    if found is None:
        found = copy.deepcopy(model).bfloat16()
    target = folder / name
    found.save_pretrained(target)
    return Runtime(name, (target / "model.safetensors").stat().st_size, found)


def _onnx(name: str, model: PreTrainedModel, packed: PreTrainedModel, folder: Path) -> Runtime:
    path = folder / f"{name}.onnx"
    if name.startswith("ONNX packed"):
        chosen = "trained" if name.endswith("as trained") else "dynamic"
        onnx.export_onnx(packed, path, chosen)
        return Runtime(name, path.stat().st_size, OnnxModel(path))
    fp32 = folder / "ONNX fp32.onnx"
    if not fp32.is_file():
        fp32.write_bytes(onnx.to_onnx(copy.deepcopy(model), onnx.about(model, "fp32")))
    if name == "ONNX int8":
        from onnxruntime.quantization import quantize_dynamic

        with quiet():
            quantize_dynamic(fp32, path)
    return Runtime(name, path.stat().st_size, OnnxModel(path, check=False))


def latencies(
    ready: Sequence[Runtime], shapes: Iterable[tuple[int, int]], vocabulary: int, repeats: int = 10,
    pause: float = 0.05,
) -> list[dict]:  # fmt: skip
    """Milliseconds of every runtime at every (batch, length), taken in turns.

    Rows of ``runtime``, ``batch``, ``length``, ``low``, ``median``, ``high`` (quartiles of
    ``repeats``) and ``ratio`` to the first runtime's median. Random ids, no padding. ``pause``: see
    :func:`xtclib.clock.in_turns`.
    """
    rows = []
    for batch, length in shapes:
        ids = random_ids(vocabulary, batch, length)
        with torch.inference_mode():
            runs = {r.name: partial(r.run, ids) for r in ready}
            found = in_turns(runs, repeats, warm_up=1, pause=pause)
        base = found[ready[0].name]["median"]
        rows += [
            {"runtime": name, "batch": batch, "length": length, **times,
             "ratio": round(times["median"] / base, 4)}
            for name, times in found.items()
        ]  # fmt: skip
    return rows


def agreement(wanted: np.ndarray, found: np.ndarray) -> dict[str, float]:
    """How far two sets of logits (rows, classes) agree: labels in percent, and differences.

    >>> agreement(np.array([[0.0, 1.0], [2.0, 0.0]]), np.array([[0.0, 1.5], [0.0, 0.5]]))
    {'labels': 50.0, 'median': 0.5, 'largest': 2.0}
    """
    apart = np.abs(wanted - found)
    return {
        "labels": 100 * float((wanted.argmax(-1) == found.argmax(-1)).mean()),
        "median": float(np.median(apart)),
        "largest": float(apart.max()),
    }


@torch.inference_mode()
def noise_by_depth(
    model: PreTrainedModel, ids: Tensor, noise: float = 1e-6, seed: int = 0
) -> list[float]:
    """How a last digit's noise grows: relative difference of hidden states, embeddings first.

    ``‖h′_l − h_l‖ / ‖h_l‖`` after each layer l, where h′ comes from embeddings with Gaussian noise
    of relative size ``noise``. Rounding to 8 bits turns some of it into whole steps.
    """
    generator = torch.Generator().manual_seed(seed)

    def disturb(_module, _inputs, output: Tensor) -> Tensor:
        random = torch.randn(output.shape, generator=generator).to(output)
        return output * (1 + noise * random)

    def states() -> list[Tensor]:
        found: list[Tensor] = []

        def keep(_module, _inputs, output) -> None:
            found.append(output[0] if isinstance(output, tuple) else output)

        with contextlib.ExitStack() as hooks:
            for layer in (model.base_model.embeddings, *encoder_layers(model)):
                hooks.enter_context(layer.register_forward_hook(keep))
            model(input_ids=ids)
        return found

    plain = states()
    with model.base_model.embeddings.register_forward_hook(disturb):
        disturbed = states()
    return [float((b - a).norm() / a.norm()) for a, b in zip(plain, disturbed, strict=True)]


def read_measured(path: str | Path) -> dict:
    """What a benchmark wrote with ``--out``: rows, with machine, versions and commit.

    Raises ``FileNotFoundError`` that says how to make it.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(
            f"no measurements at {path}: deployment.py, load_memory.py and onnx_agreement.py in "
            "benchmarks/ write them by --out"
        )
    return json.loads(path.read_text(encoding="utf-8"))


def opened(path: str | Path, threads: int | None = None, check: bool = True) -> tuple[Any, dict]:
    """A file of :mod:`.onnx` in ONNX Runtime, and what it says of itself.

    ``threads``: PyTorch's by default. Raises ``ImportError`` without ONNX Runtime,
    ``FileNotFoundError``, and ``ValueError`` for a file that does not match its checksum (unless
    ``check`` is off) or is of another program.
    """
    try:
        import onnxruntime
    except ImportError as error:
        message = "running ONNX files needs onnxruntime: pip install 'xtclib[onnx]'"
        raise ImportError(message) from error
    if not Path(path).is_file():
        raise FileNotFoundError(f"no ONNX file at {path}: write one by `xtc export`")
    if check:
        check_sum(Path(path))
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads or torch.get_num_threads()
    options.log_severity_level = 4  # what goes wrong is raised
    try:
        session = onnxruntime.InferenceSession(
            str(path), options, providers=["CPUExecutionProvider"]
        )
    except Exception as error:  # ONNX Runtime's errors share no public base class
        raise ValueError(f"{path} cannot be read by ONNX Runtime: {error}") from None
    about = json.loads(session.get_modelmeta().custom_metadata_map.get("xtc", "null"))
    if about is None:
        raise ValueError(f"{path} was not exported by xtclib: it carries no labels")
    return session, about


def feeds_of(
    longest: int | None, ids: Tensor, mask: Tensor | None = None, types: Tensor | None = None
) -> dict[str, np.ndarray]:
    """A session's inputs by name; masks and types may be left out.

    Raises ``ValueError`` for more than ``longest`` tokens.
    """
    if longest is not None and ids.shape[-1] > longest:
        raise ValueError(
            f"received {ids.shape[-1]} tokens, but the file has {longest} "
            "positions: truncate, or export with more"
        )
    mask = torch.ones_like(ids) if mask is None else mask
    types = torch.zeros_like(ids) if types is None else types
    given = dict(zip(onnx.INPUTS, (ids, mask, types), strict=True))
    return {name: tensor.long().numpy() for name, tensor in given.items()}


class OnnxModel(nn.Module):
    """An exported file in ONNX Runtime, called like the model it came from.

    ``model(input_ids, attention_mask, token_type_ids).logits``; masks and types may be left out.
    ``labels``, ``max_length`` and ``activations`` come from the file. ``threads``: PyTorch's by
    default. Raises ``ValueError`` for a file that does not match its checksum (``check=False`` is
    for files that other tools rewrote), for one of another program, and for inputs past
    ``max_length``.
    """

    device = torch.device("cpu")

    def __init__(self, path: str | Path, threads: int | None = None, check: bool = True) -> None:
        super().__init__()
        self.session, about = opened(path, threads, check)
        self.labels: list[str] = about["labels"]
        self.max_length: int | None = about["max_length"]
        self.activations: str = about["activations"]
        self.trained_on: dict = about.get("trained_on", {})  # task, data, source and length
        self.inputs = [value.name for value in self.session.get_inputs()]
        self.encodes = self.session.get_outputs()[0].name == onnx.VECTORS

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
    ) -> SequenceClassifierOutput:  # fmt: skip
        given = feeds_of(self.max_length, input_ids, attention_mask, token_type_ids)
        feeds = {name: given[name] for name in self.inputs}
        try:
            (logits,) = self.session.run(None, feeds)
        except Exception as error:  # ONNX Runtime's errors share no public base class
            shapes = {name: value.shape for name, value in feeds.items()}
            raise ValueError(
                f"ONNX Runtime refused the inputs {shapes}; expected (batch, length) of token ids "
                f"in the vocabulary: {str(error).splitlines()[0]}"
            ) from None
        return SequenceClassifierOutput(logits=torch.from_numpy(logits))
