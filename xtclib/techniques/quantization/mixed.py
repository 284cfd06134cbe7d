"""Mixed precision: each matrix takes the scheme that is worth its bytes."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping, Sequence
from typing import Literal

import torch
from torch import Tensor
from transformers import PreTrainedModel

from xtclib.bert import encoder_layers, encoder_linears
from xtclib.config import Count, Listed, Positive, config
from xtclib.tasks.base import Task
from xtclib.tasks.rows import Calibration
from xtclib.techniques.choice import choose
from xtclib.techniques.measured import moved
from xtclib.techniques.quantization.packing import packed_length
from xtclib.techniques.quantization.quantizers import Scheme, StoredScheme, quantize

CHOICES = tuple(map(Scheme.parse, ("uint2-row", "int4-row", "int8-row")))


@config
class Mixed:
    """Schemes by sensitivity: of ``choices`` one for each matrix, ``bits`` a weight in the mean.

    ``by``: ``trace``, the mean of the Hessian's diagonal times the squared error of rounding
    (:func:`traces`); ``eigenvalue``, the largest eigenvalue by a layer in place of the mean
    (:func:`eigenvalues`); ``loss``, how far the answers move when that matrix alone is rounded
    (:func:`xtclib.techniques.measured.moved`). ``rows``: of the task, for the measuring. The choice
    is exact (:func:`xtclib.techniques.choice.choose`). Sources: Shen et al. 2020 (Q-BERT),
    arXiv:1909.05840, section 3.1, which sets bits by hand from eigenvalues; Dong et al. 2020
    (HAWQ-V2), arXiv:1911.03852, equation 2 for the trace and 3.3 for the choice under a budget.
    """

    bits: Positive = 2.3
    choices: Listed[StoredScheme] = CHOICES
    by: Literal["trace", "eigenvalue", "loss"] = "trace"
    rows: Count = 64

    def schemes(self, model: PreTrainedModel, data: Calibration) -> dict[str, Scheme]:
        """The scheme of each matrix of the encoder, by its full name."""
        shapes = {name: linear.weight.shape for name, linear in encoder_linears(model).items()}
        return self.chosen(shapes, self.losses(model, data))

    def chosen(self, shapes: Mapping[str, Sequence[int]],
               losses: Sequence[Sequence[float]] | None = None) -> dict[str, Scheme]:  # fmt: skip
        """The best choice for matrices of these shapes (rows, columns) and losses by option.

        Without losses: as if all weights mattered alike. ``ValueError`` for too few bits.
        """
        costs = [[r * packed_length(c, s.bits) for s in self.choices] for r, c in shapes.values()]
        values = [r * c for r, c in shapes.values()]
        losses = losses or [[n * 4.0**-s.bits for s in self.choices] for n in values]
        try:
            found = choose(costs, losses, int(self.bits * sum(values) / 8))
        except ValueError:
            least = 8 * sum(map(min, costs)) / sum(values)
            short = f"no choice of {', '.join(map(str, self.choices))} takes {self.bits:g} bits"
            raise ValueError(f"{short} a weight or less: the least is {least:.3g}") from None
        return {name: self.choices[i] for name, i in zip(shapes, found, strict=True)}

    def losses(self, model: PreTrainedModel, data: Calibration) -> list[list[float]]:
        """What each choice is foreseen to lose, for each matrix of the encoder."""
        weights = {name: linear.weight.detach() for name, linear in encoder_linears(model).items()}
        rounded = [{n: quantize(w, scheme).dequantize() for n, w in weights.items()}
                   for scheme in self.choices]  # fmt: skip
        task = data.data.task
        if self.by == "loss":
            far = [moved(model, each, data.batches(), task) for each in rounded]
            return [[found[name] for found in far] for name in weights]
        curvature = traces if self.by == "trace" else eigenvalues
        sharp = curvature(model, data.batches(), task)
        return [[sharp[name] * float((w - each[name]).square().sum()) for each in rounded]
                for name, w in weights.items()]  # fmt: skip


class _Slopes:
    """The loss's gradients by the encoder's matrices, to be differentiated once more."""

    def __init__(self, model: PreTrainedModel, batches: Iterable[dict], task: Task) -> None:
        self.model = copy.deepcopy(model).eval().requires_grad_(False)
        self.model.set_attn_implementation("eager")  # the fused one has no second derivative
        self.task, self.batches = task, list(batches)
        self.weights = {n: la.weight for n, la in encoder_linears(self.model).items()}
        for weight in self.weights.values():
            weight.requires_grad_(True)

    def products(self, vectors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """``H·v`` by all of the weights that have a vector, of the mean loss over the rows."""
        wanted = [self.weights[name] for name in vectors]
        sums, rows = [torch.zeros_like(each) for each in wanted], 0
        for batch in self.batches:
            batch = {name: value.to(self.model.device) for name, value in batch.items()}
            labels, count = batch.pop("labels"), len(batch["input_ids"])
            answers = self.task.answers(self.model(**batch), labels, batch["attention_mask"])
            slopes = torch.autograd.grad(self.task.loss(*answers), wanted, create_graph=True)
            along = sum((g * v).sum() for g, v in zip(slopes, vectors.values(), strict=True))
            for total, part in zip(sums, torch.autograd.grad(along, wanted), strict=True):
                total += count * part
            rows += count
        return {name: total / rows for name, total in zip(vectors, sums, strict=True)}


def traces(model: PreTrainedModel, batches: Iterable[dict], task: Task, probes: int = 8,
           seed: int = 0) -> dict[str, float]:  # fmt: skip
    """The mean of the diagonal of the loss's Hessian by each matrix of the encoder, by name.

    Hutchinson's estimate ``E[vᵢᵀ(H·v)ᵢ] / nᵢ`` over vectors of ±1: what matrices do to each other
    has mean 0, so one product serves them all. Below 0 counts as 0. Source: Dong et al. 2020,
    arXiv:1911.03852, section 3.2.
    """
    slopes, generator = _Slopes(model, batches, task), torch.Generator().manual_seed(seed)
    sums = dict.fromkeys(slopes.weights, 0.0)
    for _ in range(probes):
        vectors = {n: (torch.randint(2, w.shape, generator=generator) * 2.0 - 1).to(w.device)
                   for n, w in slopes.weights.items()}  # fmt: skip
        for name, product in slopes.products(vectors).items():
            sums[name] += float((vectors[name] * product).sum()) / product.numel()
    return {name: max(total / probes, 0.0) for name, total in sums.items()}


def eigenvalues(model: PreTrainedModel, batches: Iterable[dict], task: Task, steps: int = 4,
                seed: int = 0) -> dict[str, float]:  # fmt: skip
    """The largest eigenvalue of the loss's Hessian by each encoder layer alone, by matrix.

    Power iteration, ``v ← H·v / ‖H·v‖``, ``steps`` times; its size, whatever its sign. Matrices of
    a layer share theirs. Source: Shen et al. 2020, arXiv:1909.05840, section 3.1.
    """
    slopes, generator = _Slopes(model, batches, task), torch.Generator().manual_seed(seed)
    found: dict[str, float] = {}
    for layer in encoder_layers(slopes.model):
        inside = {id(weight) for weight in layer.parameters()}
        mine = {name: w for name, w in slopes.weights.items() if id(w) in inside}
        vectors = {n: torch.randn(w.shape, generator=generator).to(w) for n, w in mine.items()}
        for _ in range(steps):
            length = _norm(vectors).clamp(min=1e-30)
            vectors = slopes.products({name: v / length for name, v in vectors.items()})
        found |= dict.fromkeys(mine, float(_norm(vectors)))
    return found


def _norm(vectors: Mapping[str, Tensor]) -> Tensor:
    return torch.stack([v.square().sum() for v in vectors.values()]).sum().sqrt()
