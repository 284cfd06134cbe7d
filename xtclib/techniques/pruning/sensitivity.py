"""What a model can spare: parts removed one at a time, without training, and scored.

A ``score`` is any function of a model, such as its accuracy on some rows. The model is never
changed; parts are silenced on a copy by zeros, which is what removing them computes.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from tqdm.auto import tqdm
from transformers import PreTrainedModel

from xtclib.bert import PART_OF, encoder_layers, encoder_linears
from xtclib.files import unknown
from xtclib.techniques.base import copied
from xtclib.techniques.measured import below
from xtclib.techniques.pruning.importance import CRITERIA
from xtclib.techniques.pruning.masks import masks
from xtclib.techniques.pruning.surgery import HEADS, readers

Score = Callable[[PreTrainedModel], float]
GROUPS = ("component", "layer", "model")


@dataclass(frozen=True)
class Point:
    """A part of a model, the share of it that was removed, and the score that was left."""

    part: str
    share: float
    score: float


def weights(
    model: PreTrainedModel, score: Score, shares: Sequence[float] = (0.3, 0.5, 0.7, 0.9),
    by: str = "component", criterion: str = "magnitude", progress: bool = True,
) -> list[Point]:  # fmt: skip
    """The score with a share of one part's weights set to zero, for every part and share.

    ``by``: ``component`` (query, key, value, …, of all layers at once), ``layer``, or the whole
    ``model``'s encoder. Magnitudes are ranked within each matrix. Raises ``ValueError`` for shares
    outside [0, 1) and for criteria that have to be learned.
    """
    if by not in GROUPS:
        raise unknown("grouping", by, GROUPS)
    known = [name for name, kind in CRITERIA.items() if not kind.learns]
    if criterion not in known:
        raise unknown("criterion", criterion, known)
    wrong = [share for share in shares if not 0 <= share < 1]
    if wrong:
        raise ValueError(f"shares to remove lie in [0, 1), received {wrong[0]}")
    model = copied(model).eval()
    parts: dict[str, list[nn.Linear]] = {}
    for name, linear in encoder_linears(model).items():
        parts.setdefault(_part(name, by), []).append(linear)
    found, wanted = [], [(*item, share) for item in parts.items() for share in shares]
    for part, linears, share in tqdm(wanted, "sensitivity", leave=False, disable=not progress):
        generator = torch.Generator().manual_seed(0)
        scores = [CRITERIA[criterion]().scores(linear, generator) for linear in linears]
        with _zeroed(linears, masks(scores, share)):
            found.append(Point(part, share, score(model)))
    return found


def heads(model: PreTrainedModel, score: Score, progress: bool = True) -> Tensor:
    """The score without each head, one at a time: (layers, heads), NaN where a layer has fewer.

    ``score`` reads the same rows in the same order at every call: what lies below a head's layer is
    computed for the first of its heads alone. Source: Michel et al. 2019, arXiv:1905.10650, section
    3.2.
    """
    model = copied(model).eval()
    layers = readers(model, HEADS)
    found = torch.full((len(layers), max(count for *_, count in layers)), torch.nan)
    wanted = [(layer, head) for layer, (*_, count) in enumerate(layers) for head in range(count)]
    kept: list = []
    for layer, head in tqdm(wanted, "heads", leave=False, disable=not progress):
        _, dense, count = layers[layer]
        mask = torch.ones_like(dense.weight, dtype=torch.bool)
        mask.view(len(mask), count, -1)[:, head] = False
        kept = kept if head else []
        with _zeroed([dense], [mask]), below(encoder_layers(model)[:layer], kept):
            found[layer, head] = score(model)
    return found


def _part(name: str, by: str) -> str:
    found = re.search(r"layers?\.(\d+)\.(.+)$", name)
    layer, inner = (int(found[1]), found[2]) if found else (0, name)
    names = {"component": PART_OF.get(inner, inner), "layer": f"layer {layer + 1}"}
    return names.get(by, "encoder")


@contextmanager
def _zeroed(linears: Sequence[nn.Linear], keep: Sequence[Tensor]) -> Iterator[None]:
    """Weights outside the masks are 0 inside the block, and what they were after it."""
    before = [linear.weight.data for linear in linears]
    try:
        for linear, mask in zip(linears, keep, strict=True):
            linear.weight.data = linear.weight.data * mask
        yield
    finally:
        for linear, weight in zip(linears, before, strict=True):
            linear.weight.data = weight
