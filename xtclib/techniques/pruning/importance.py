"""How much a head, a neuron, a layer or a single weight matters."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator, Sequence
from itertools import pairwise
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedModel

from xtclib.bert import heads_of, part
from xtclib.config import Named, NotNegative, Positive, Registry, config
from xtclib.tasks.base import Task
from xtclib.tasks.classification import CLASSES
from xtclib.techniques.pruning.layers import GatedLinear, HardConcrete, closed
from xtclib.techniques.pruning.surgery import (
    HEADS,
    NEURONS,
    _check_width,
    _layers,
    _on_hidden,
    _tables,
    readers,
)


def head_magnitudes(model: PreTrainedModel) -> list[Tensor]:
    """Mean ``|w|`` of each head over its query, key, value and output weights: (heads,) a layer."""
    found = []
    for layer in _layers(model):
        parts = [part(layer, name).weight for name in ("query", "key", "value")]
        parts.append(part(layer, "attention output").weight.T)
        sizes = [each.detach().abs().reshape(heads_of(layer), -1).mean(1) for each in parts]
        found.append(torch.stack(sizes).mean(0))
    return found


def neuron_magnitudes(model: PreTrainedModel) -> list[Tensor]:
    """``‖w_in‖ · ‖w_out‖`` of each feed-forward neuron: (neurons,) a layer.

    The product is what scaling one side up and the other down leaves as it is.
    """
    names = "feed-forward in", "feed-forward out"
    pairs = [[part(layer, name) for name in names] for layer in _layers(model)]
    return [a.weight.detach().norm(dim=1) * b.weight.detach().norm(dim=0) for a, b in pairs]


def hidden_magnitudes(model: PreTrainedModel) -> Tensor:
    """``√Σ w²`` over all that reads or writes each hidden dimension: (hidden,)."""
    _check_width(model)
    squares = torch.zeros(model.config.hidden_size)
    for table in _tables(model):
        squares += table.weight.detach().square().sum(0).cpu()
    for linear, reads, writes in _on_hidden(model):
        weight = linear.weight.detach().square().cpu()
        squares += (weight.sum(0) if reads else 0) + (weight.sum(1) if writes else 0)
    return squares.sqrt()


def gradients(
    model: PreTrainedModel, batches: Iterable[dict], of: str, task: Task = CLASSES
) -> list[Tensor]:
    """Mean ``|∂L(x)/∂ξ|`` over rows x, of a gate ξ = 1 on every head or neuron; unit norm a layer.

    Every row has gates of its own, so that slopes of different signs do not cancel. Batches hold
    labels. Source: Michel et al. 2019, arXiv:1905.10650, section 4.1.
    """
    found: list = []
    for slopes in _slopes(model, batches, [of], task):
        sums = [slope.abs().sum(0) for slope in slopes[of]]
        found = [a + b for a, b in zip(found, sums, strict=True)] if found else sums
    return [total / total.norm().clamp(min=1e-30) for total in found]


def fisher(model: PreTrainedModel, batches: Iterable[dict], task: Task = CLASSES,
           drawn: int | None = None) -> dict[str, list[Tensor]]:  # fmt: skip
    """``E[∂L/∂m · (∂L/∂m)ᵀ]`` over rows, of masks m = 1 on the heads and neurons of each layer.

    For each of both (parts, parts) a layer. ``drawn``: labels are drawn by that seed from the
    model's own answers, so that nobody looks at those of the rows. Source: Kwon et al. 2022,
    arXiv:2204.09656, section 3.1, whose blocks these are.
    """
    found: dict[str, list] = {}
    rows = 0
    for slopes in _slopes(model, batches, (HEADS, NEURONS), task, drawn):
        for of, own in slopes.items():
            blocks = [slope.T @ slope for slope in own]
            before = found.get(of)
            found[of] = [a + b for a, b in zip(before, blocks, strict=True)] if before else blocks
        rows += len(own[0])
    return {of: [total / rows for total in totals] for of, totals in found.items()}


def _slopes(model: PreTrainedModel, batches: Iterable[dict], kinds: Sequence[str], task: Task,
            drawn: int | None = None) -> Iterator[dict[str, list[Tensor]]]:  # fmt: skip
    """For each batch and kind ``∂L/∂ξ`` of every row's own gates, (rows, parts) a layer."""
    model = copy.deepcopy(model).eval().requires_grad_(False)
    generator = torch.Generator().manual_seed(drawn or 0)
    gated: list[tuple[str, GatedLinear, int]] = []
    for of in kinds:
        for put, dense, count in readers(model, of):
            gated.append((of, GatedLinear.from_linear(dense, count), count))
            put(gated[-1][1])
    for batch in batches:
        batch = {name: value.to(model.device) for name, value in batch.items()}
        rows = len(batch["input_ids"])
        for _, layer, count in gated:
            layer.gate = nn.Parameter(layer.weight.new_ones(rows, 1, count))
        labels, mask = batch.pop("labels"), batch["attention_mask"]
        logits, wanted = task.answers(model(**batch), labels, mask)
        if drawn is not None:
            wanted = _draws(logits, wanted, generator)
        loss = rows * task.loss(logits, wanted)  # the sum over rows, each with its own gates
        slopes = torch.autograd.grad(loss, [layer.gate for _, layer, _ in gated])
        found: dict[str, list[Tensor]] = {of: [] for of in kinds}
        for (of, *_), slope in zip(gated, slopes, strict=True):
            found[of].append(slope.squeeze(1))
        yield found


def _draws(logits: Tensor, labels: Tensor, generator: torch.Generator) -> Tensor:
    """Labels like these, drawn from what the logits say; numbers: the answer and a normal error."""
    if labels.dtype == torch.int64:
        chances = logits.detach().float().softmax(-1).cpu()
        return torch.multinomial(chances.flatten(0, -2), 1, generator=generator).reshape(
            labels.shape).to(labels.device)  # fmt: skip
    given = logits.detach().reshape(labels.shape)
    if labels.ndim > 1:  # classes that may hold at once
        chances = given.float().sigmoid().cpu()
        return torch.bernoulli(chances, generator=generator).to(labels)
    return given + torch.randn(given.shape, generator=generator).to(given)


@torch.no_grad()
def layer_influence(model: PreTrainedModel, batches: Iterable[dict]) -> list[float]:
    """``1 − cos(h_in, h_out)`` of every layer, mean over tokens: how much a layer changes.

    Source: block influence of Men et al. 2024, arXiv:2403.03853, equation 1.
    """
    model, count = copy.deepcopy(model).eval(), 0
    sums: Any = 0
    for batch in batches:
        batch = {name: value.to(model.device) for name, value in batch.items()}
        seen = batch["attention_mask"].bool()
        states = model(**batch, output_hidden_states=True).hidden_states
        alike = [F.cosine_similarity(a[seen], b[seen], dim=-1) for a, b in pairwise(states)]
        sums = sums + torch.stack([(1 - each.double()).sum() for each in alike])
        count += int(seen.sum())
    return (sums / count).tolist()


def learned_gates(model: PreTrainedModel, of: str) -> list[Tensor]:
    """``log α`` of every gate, (heads,) or (neurons,) a layer, after which the gates are closed."""
    found = []
    for put, dense, _ in readers(model, of):
        if not isinstance(dense, HardConcrete):
            source = f"`learn_gates: {{part: {of}}}` has learned"
            raise ValueError(f"'gates' reads what {source}: list that in an earlier stage")
        found.append(dense.scores.detach())
        put(closed(dense))
    return found


def best(scores: Sequence[Tensor], keep: float, scope: str = "layer") -> list[list[int]]:
    """The numbers of the highest scores, rising, for each layer.

    ``scope``: ``layer`` keeps the same share everywhere, ``model`` compares all layers and keeps at
    least one in each. A score ties in favour of the lower number.

    >>> best([torch.tensor([3.0, 1.0, 2.0, 0.0]), torch.tensor([9.0, 8.0, 7.0, 6.0])], 0.5)
    [[0, 2], [0, 1]]
    >>> best([torch.tensor([3.0, 1.0, 2.0, 0.0]), torch.tensor([9.0, 8.0, 7.0, 6.0])], 0.5, "model")
    [[0], [0, 1, 2]]
    """
    if scope == "layer":
        return [best([layer], keep, "model")[0] for layer in scores]
    flat, sizes = torch.cat(list(scores)), [len(layer) for layer in scores]
    for layer in flat.split(sizes):
        layer[layer.argmax()] = torch.inf  # no layer goes empty
    count = max(round(keep * len(flat)), len(scores))
    chosen = torch.zeros_like(flat, dtype=torch.bool)
    chosen[flat.argsort(descending=True, stable=True)[:count]] = True
    return [layer.nonzero().flatten().tolist() for layer in chosen.split(sizes)]


class Criterion(Named):
    """How much each single weight matters; :class:`.unstructured.Sparsify` drops the lowest.

    A new one is a class with a ``name`` and :meth:`scores`, under ``@register_criterion``; settings
    of its own are fields under ``@config``.
    """

    learns: ClassVar[bool] = False  # its scores are layers' parameters, which training moves
    score_learning_rate: float | None = None
    score_noise: float = 0.0

    def scores(self, layer: nn.Linear, generator: torch.Generator) -> Tensor:
        """One number a weight: (out_features, in_features)."""
        raise NotImplementedError(f"{type(self).__name__} does not say how it scores")


CRITERIA = Registry("criterion", Criterion)
register_criterion = CRITERIA.register


@register_criterion
@config
class Magnitude(Criterion):
    """``|w|``."""

    name: ClassVar[str] = "magnitude"

    def scores(self, layer: nn.Linear, generator: torch.Generator) -> Tensor:
        return layer.weight.detach().abs()


@register_criterion
@config
class Random(Criterion):
    """Chance, the control."""

    name: ClassVar[str] = "random"

    def scores(self, layer: nn.Linear, generator: torch.Generator) -> Tensor:
        return torch.rand(layer.weight.shape, generator=generator).to(layer.weight.device)


@register_criterion
@config
class Movement(Criterion):
    """``S = −Σ ∂L/∂W' ⊙ W`` over the steps so far: what moves away from zero stays.

    Of a clipped step it is the clipped gradient; at ``score_learning_rate`` what Adam makes of that
    gradient, as the release has it. ``score_noise`` starts scores at uniform numbers up to it (the
    release's ``mask_init``): what goes first is then chance, not what one batch's gradient points
    at. Source: Sanh et al. 2020, arXiv:2005.07683, equation 3.
    """

    name: ClassVar[str] = "movement"
    learns: ClassVar[bool] = True
    score_learning_rate: Positive | None = None
    score_noise: NotNegative = 0.0

    def scores(self, layer: nn.Linear, generator: torch.Generator) -> Tensor:
        return layer.scores.detach()
