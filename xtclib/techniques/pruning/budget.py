"""Retraining-free pruning: heads and neurons that fit a budget, and what is left put right.

A mask m is 1 for a head or neuron that stays. A sublayer's output is ``Σᵢ mᵢ·Wᵢxᵢ + b``, of what
its parts give (x) through their columns of the last matrix (W): (width, inputs).
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import ClassVar, Literal

import numpy as np
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from xtclib.bert import attention_of, encoder_layers, heads_of, part
from xtclib.clock import in_turns
from xtclib.config import Count, Share, Whole, config
from xtclib.tasks.rows import Calibration
from xtclib.techniques.base import Technique, copied, needs, register
from xtclib.techniques.choice import choose
from xtclib.techniques.measured import Call, calls_of, nearest, reads
from xtclib.techniques.pruning import importance, surgery
from xtclib.techniques.pruning.surgery import HEADS, NEURONS

_ENTRY = {HEADS: "query", NEURONS: "feed-forward in"}  # what reads a sublayer's input
_EXIT = {HEADS: "attention output", NEURONS: "feed-forward out"}
_CUT = {HEADS: surgery.keep_heads_, NEURONS: surgery.keep_neurons_}
_DAMP = 0.01  # how far what is fitted is drawn to what it was
_STEPS = 48  # how many widths of a feed-forward block are tried


@register
@config
class PruneToBudget(Technique):
    """Removes the heads and neurons that matter least, until a budget is met, and trains nothing.

    ``keep``: the share of the encoder's ``operations`` that stays, or of its ``milliseconds``, on
    ``batch`` rows of ``length`` tokens by this machine's own times for each width. What a part
    matters is ``E[(∂L/∂m)²]`` over ``rows`` rows, by their ``labels`` as ``given``, or as ``drawn``
    from the model's own answers, so that none is looked at. How many of each layer stay is chosen
    together, exactly. ``tune``: ``masks`` gives what stays a factor each, ``weights`` the whole
    last matrix of a sublayer, by least squares of the teacher's outputs, from the first sublayer to
    the last; or ``none``.

    Sources: Kwon et al. 2022, arXiv:2204.09656, sections 3.2 to 3.4 (Fisher, the search, the
    rearrangement, mask tuning); Park et al. 2024 (K-prune), arXiv:2308.03449, sections 3.2 and 3.4
    (predictive knowledge, weights tuned sublayer by sublayer).
    """

    name: ClassVar[str] = "prune_to_budget"
    prunes: ClassVar[bool] = True
    percent: ClassVar[str | None] = "keep"
    keep: Share = 0.5
    of: Literal["operations", "milliseconds"] = "operations"
    labels: Literal["given", "drawn"] = "given"
    tune: Literal["masks", "weights", "none"] = "masks"
    rows: Count = 512
    batch: Count = 8
    length: Count = 32
    seed: Whole = 0

    @property
    def looks_at(self) -> int:
        return self.rows

    def apply(self, model: PreTrainedModel, data: Calibration | None = None) -> PreTrainedModel:
        training, teacher = model.training, copied(model, self.name).eval()
        if surgery.uneven(teacher):
            cut = "comes before heads, neurons or width go: list it first"
            raise ValueError(f"{self.name} {cut}")
        rows = replace(needs(data, self.name), rows=self.rows)
        batches, drawn = list(rows.batches()), self.seed if self.labels == "drawn" else None
        model = copy.deepcopy(teacher)
        blocks = importance.fisher(teacher, batches, rows.data.task, drawn)
        kept = chosen(blocks, self._costs(teacher), self.keep)
        both = zip(encoder_layers(model), encoder_layers(teacher), strict=True)
        for index, (layer, own) in enumerate(both):
            tuned = batches if self.tune != "none" else ()
            calls, first = calls_of(model, layer, tuned), calls_of(teacher, own, tuned)
            for part_, cut_ in _CUT.items():
                stay = rearranged(blocks[part_][index], kept[part_][index])
                cut_(layer, stay)
                if tuned:
                    moments = _wanted(layer, own, part_, calls, first)
                    self._tune_(part(layer, _EXIT[part_]), len(stay), *moments)
        return model.train(training)

    def _tune_(self, matrix: nn.Linear, count: int, moment: Tensor, wanted: Tensor) -> None:
        """Puts the last matrix of a sublayer of ``count`` parts right, in place."""
        weight, size = matrix.weight.detach().double(), matrix.in_features // count
        if self.tune == "masks":
            new = weight * mask_of(weight, moment, wanted, size).repeat_interleave(size)
        else:
            new = nearest(weight, moment, wanted, _DAMP)
        matrix.weight.data = new.to(matrix.weight.dtype)

    def _costs(self, model: PreTrainedModel) -> dict[str, list[int]]:
        """What each count of heads or neurons costs a layer, from none missing to one left."""
        if self.of == "operations":
            return operations(model, self.length)
        return timed(model, self.batch, self.length)

    def plan(self, model: PreTrainedModel) -> PreTrainedModel:
        for layer, width in zip(encoder_layers(model), surgery.widths(model), strict=True):
            for part_, cut_ in _CUT.items():
                cut_(layer, range(max(round(self.keep * width[part_]), 1)))
        return model


def counts(full: int, part_: str) -> list[int]:
    """How many heads, or neurons in steps, may stay, falling.

    >>> counts(4, HEADS), counts(96, NEURONS)[:3]
    ([4, 3, 2, 1], [96, 94, 92])
    """
    step = 1 if part_ == HEADS else max(full // _STEPS, 1)
    return list(range(full, 0, -step))


def operations(model: PreTrainedModel, length: int) -> dict[str, list[int]]:
    """Multiplications of a layer on a row of ``length`` tokens, for each of :func:`counts`."""
    layer = encoder_layers(model)[0]
    width = part(layer, "feed-forward in").in_features
    heads, size = heads_of(layer), attention_of(layer).attention_head_size
    neurons = part(layer, "feed-forward in").out_features
    a_head = 4 * length * width * size + 2 * length**2 * size  # three in, one out, two products
    return {HEADS: [a_head * n for n in counts(heads, HEADS)],
            NEURONS: [2 * length * width * n for n in counts(neurons, NEURONS)]}  # fmt: skip


@torch.no_grad()
def timed(model: PreTrainedModel, batch: int, length: int) -> dict[str, list[int]]:
    """Nanoseconds of a layer's heads and neurons on this machine, for each of :func:`counts`.

    A layer's time at some widths, in turns, and lines between them; lower quartiles, which other
    work moves least. What is left of a layer with neither (norms, sums) is half each part's, so
    that both sum to a whole layer.
    """
    layer = encoder_layers(model)[0]
    width = part(layer, "feed-forward in").in_features
    x = torch.randn(batch, length, width, device=part(layer, "query").weight.device)
    full = {HEADS: heads_of(layer), NEURONS: part(layer, "feed-forward in").out_features}
    sizes = {part_: sorted({max(round(share * most), 1) for share in (0, 0.25, 0.5, 0.75, 1)})
             for part_, most in full.items()}  # fmt: skip
    tried = {}
    for part_, some in sizes.items():
        for count in some:
            new = copy.deepcopy(layer).eval()
            _CUT[part_](new, range(count))
            tried[f"{part_} {count}"] = partial(new, x)
    times = {name: 1e6 * each["low"] for name, each in in_turns(tried, 15, 2).items()}
    found = {}
    for part_, some in sizes.items():
        at = [times[f"{part_} {count}"] for count in some]
        line = np.interp(counts(full[part_], part_), some, at) - at[-1] / 2
        found[part_] = [max(int(each), 1) for each in line]
    return found


def chosen(blocks: dict[str, list[Tensor]], costs: dict[str, list[int]],
           keep: float) -> dict[str, list[int]]:  # fmt: skip
    """How many heads and neurons of every layer stay, at the least loss under the budget.

    What is lost by a mask is ``Σ Fᵢᵢ`` over what goes: the least first (Kwon et al., equation 7).
    ``blocks``: F of every layer's heads and neurons. ``ValueError`` with the least share where one
    head and the fewest neurons in every layer cost more.
    """
    options, losses, sizes = [], [], []
    for part_, layers in blocks.items():
        for block in layers:
            ranked = block.diagonal().double().sort().values.cumsum(0)
            lost = torch.cat([ranked.new_zeros(1), ranked])
            sizes.append(counts(len(block), part_))
            options.append(costs[part_])
            losses.append([float(lost[len(block) - n]) for n in sizes[-1]])
    whole = sum(each[0] for each in options)
    try:
        found = choose(options, losses, int(keep * whole))
    except ValueError:
        least = sum(map(min, options)) / whole
        few = f"no heads and neurons fit into {keep:.0%} of the encoder"
        raise ValueError(f"{few}: the least that can stay is {least:.1%}") from None
    stay = [size[i] for size, i in zip(sizes, found, strict=True)]
    depth = len(blocks[HEADS])
    return {HEADS: stay[:depth], NEURONS: stay[depth:]}


def rearranged(block: Tensor, keep: int) -> list[int]:
    """Which ``keep`` of a layer's parts stay, rising, so that ``pᵀ·F·p`` is small for what goes.

    From the highest of F's diagonal on, each part that goes is exchanged once with the one that
    stays and lowers it most. Source: Kwon et al. 2022, arXiv:2204.09656, section 3.3.

    >>> rearranged(torch.tensor([[1.0, 0.9, 0.0], [0.9, 1.1, 0.0], [0.0, 0.0, 1.2]]), 1)
    [1]
    """
    f = block.double()
    order = f.diagonal().argsort(descending=True, stable=True)
    gone = torch.ones(len(f), dtype=f.dtype, device=f.device)
    gone[order[:keep]] = 0
    pulls = f @ gone
    for i in order[keep:].tolist():
        change = 2 * (pulls - pulls[i]) + f.diagonal() + f[i, i] - 2 * f[i]
        j = int(change.masked_fill(gone.bool(), torch.inf).argmin())
        if change[j] < -1e-12:
            gone[i], gone[j] = 0, 1
            pulls += f[:, j] - f[:, i]
    return (gone == 0).nonzero().flatten().tolist()


@torch.no_grad()
def _wanted(layer: nn.Module, own: nn.Module, part_: str, calls: Sequence[Call],
            first: Sequence[Call]) -> tuple[Tensor, Tensor]:  # fmt: skip
    """``E[x̂·x̂ᵀ]`` and ``E[y·x̂ᵀ]``: what the last matrix reads, and what it should give.

    y is the teacher's output without the bias, and what its sublayer read less what this one
    reads: after the sum with its input a sublayer then gives what the teacher's does.
    """
    ends = [[part(each, which[part_]) for which in (_ENTRY, _EXIT)] for each in (layer, own)]
    weight = ends[1][1].weight
    sums: list = [0, 0]
    count = 0
    for now, then in zip(calls, first, strict=True):
        (before, x), (origin, given) = reads(now, ends[0]), reads(then, ends[1])
        y = given @ weight.T + origin - before
        sums = [sums[0] + (x.T @ x).double(), sums[1] + (y.T @ x).double()]
        count += len(x)
    return sums[0] / count, sums[1] / count


def mask_of(weight: Tensor, moment: Tensor, wanted: Tensor, size: int) -> Tensor:
    """A factor for each part that stays: least squares of ``‖Σᵢ mᵢ·Wᵢxᵢ − y‖²``, drawn to 1.

    With ``G = WᵀW ∘ E[xxᵀ]`` and ``h = diag(Wᵀ·E[yxᵀ])``, summed over each part's ``size`` columns,
    ``m = 1 + (G + λI)⁻¹(h − G·1)``, λ a hundredth of G's mean diagonal (:func:`.nearest`).
    Factors beyond ±10 are not trusted: then all stay 1. Source: Kwon et al. 2022, arXiv:2204.09656,
    section 3.4.

    >>> w = torch.eye(2, dtype=torch.float64)
    >>> mask_of(w, w, torch.diag(torch.tensor([2.0, 1.0])).double(), 1).round(decimals=2)
    tensor([1.9900, 1.0000], dtype=torch.float64)
    """
    parts = weight.shape[1] // size
    g = ((weight.T @ weight) * moment).reshape(parts, size, parts, size).sum((1, 3))
    h = (weight * wanted).sum(0).reshape(parts, size).sum(1)
    found = nearest(torch.ones(1, parts).to(g), g, h[None], _DAMP)[0]
    return found if bool((found.abs() <= 10).all()) else torch.ones_like(found)
