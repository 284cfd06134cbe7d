"""Rounding whose errors make up for each other: GPTQ, from what a matrix reads, without training.

A weight is (outputs, inputs), as PyTorch holds it. The error of a rounded row ``ŵ`` on inputs of
second moment ``M = E[x·xᵀ]`` is ``(w − ŵ)·M·(w − ŵ)ᵀ``: its Hessian is the same for all rows.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Literal, NamedTuple

import torch
from torch import Tensor
from transformers import PreTrainedModel

from xtclib.bert import encoder_layers, replace_module_
from xtclib.config import Count, Flag, NotNegative, config
from xtclib.tasks.rows import Calibration
from xtclib.techniques.measured import Call, Inputs, calls_of, in_order, inputs_of, nearest
from xtclib.techniques.quantization.packed import PackedLinear
from xtclib.techniques.quantization.quantizers import Quantized, Scheme, quantize

_FACTORS = torch.linspace(0.3, 1.2, 19)  # of a scale, around 1
_BLOCK = 128  # columns whose errors go to the rest together


@config
class Calibrated:
    """How weights are rounded by what they read, on ``rows`` rows whose labels nobody looks at.

    ``method``: ``gptq`` carries every rounding error on to the columns that are still to be
    rounded, ``nearest`` does not. ``scale``: ``search`` takes of each row's scales the one with the
    least error of the output, and fits it again once the integers are known; ``range`` is the
    scheme's own. ``order``: columns as they ``stand``, or those of large inputs first (``falling``,
    the release's ``act_order``). ``damp``: how much of the mean of the Hessian's diagonal is added
    to it. ``follow``: a matrix is first moved to where its output is nearest to the *teacher's*,
    reading what the rounded layers before it give; without, nearest to its own. Biases take up the
    mean of what is lost. Sources: Frantar et al. 2023 (GPTQ), arXiv:2210.17323, section 3 and its
    release; Frantar and Alistarh 2022 (OBQ), arXiv:2208.11580; bias: Nagel et al. 2019,
    arXiv:1906.04721, section 4.2; ``follow``: Li et al. 2025 (GPTAQ), arXiv:2504.02692, whose aim
    it has, by least squares.
    """

    rows: Count = 512
    method: Literal["gptq", "nearest"] = "gptq"
    scale: Literal["search", "range"] = "search"
    order: Literal["stand", "falling"] = "stand"
    damp: NotNegative = 0.01
    follow: Flag = False


class Grid(NamedTuple):
    """The numbers that a row may take, ``scale · codes``: scale and zero point (rows, 1)."""

    scheme: Scheme
    scale: Tensor
    zero: Tensor | None = None

    def codes(self, x: Tensor) -> Tensor:
        """The nearest integers, the zero point subtracted; (rows, n) of reals → the same shape."""
        if self.scheme.family == "binary":
            return torch.where(x >= 0, 1.0, -1.0).to(x.dtype)
        low, high = self.scheme.levels
        codes = (x / self.scale.clamp(min=1e-12)).round_()
        if self.zero is None:
            return codes.clamp_(low, high)
        return codes.clamp_(low - self.zero, high - self.zero)


def grid(weight: Tensor, scheme: Scheme) -> Grid:
    """The scheme's own scale and zero point for each row of a weight."""
    found = quantize(weight, scheme)
    rows = len(weight), 1
    zero = found.zero_point
    return Grid(scheme, found.scale.expand(rows), zero if zero is None else zero.expand(rows))


def error(weight: Tensor, rounded: Tensor, moment: Tensor) -> Tensor:
    """``(w − ŵ)·M·(w − ŵ)ᵀ`` of every row: the mean squared error of each output, (rows,)."""
    off = weight - rounded
    return ((off @ moment) * off).sum(1)


def searched(weight: Tensor, moment: Tensor, scheme: Scheme) -> Grid:
    """Of scales 0.3 to 1.2 times the scheme's own the best by the error of the output.

    Rows that share a scale choose together.

    >>> w, loud = torch.tensor([[1.0, 0.4]]), torch.diag(torch.tensor([0.0, 1.0]))
    >>> searched(w, loud, Scheme.parse("int2-row")).scale  # the second input alone counts
    tensor([[0.3999]])
    """
    own = grid(weight, scheme)
    best, least = own.scale.clone(), None
    for factor in _FACTORS.tolist():
        tried = own._replace(scale=(factor * own.scale).half().to(weight.dtype))
        found = _together(error(weight, tried.codes(weight) * tried.scale, moment), scheme)
        least = torch.full_like(found, torch.inf) if least is None else least
        best = torch.where((found < least)[:, None], tried.scale, best)
        least = torch.minimum(least, found)
    return own._replace(scale=best)


def refitted(weight: Tensor, moment: Tensor, found: Grid, codes: Tensor) -> Grid:
    """The best scale for these integers, ``s = (q·M·wᵀ) / (q·M·qᵀ)``, over rows that share one."""
    weighed = codes @ moment
    over = _together((weighed * weight).sum(1), found.scheme)
    under = _together((weighed * codes).sum(1), found.scheme)
    scale = (over / under.clamp(min=1e-30))[:, None].half().to(weight.dtype)
    return found._replace(scale=torch.where(scale > 0, scale, found.scale))


def _together(each: Tensor, scheme: Scheme) -> Tensor:
    """Sums over the rows that share a scale, (rows,) → (rows,)."""
    groups = scheme.groups_of(len(each))
    sums = each.reshape(groups, -1).sum(1)
    return sums.repeat_interleave(len(each) // groups)


def gptq(weight: Tensor, moment: Tensor, found: Grid, order: str = "stand",
         damp: float = 0.01) -> Tensor:  # fmt: skip
    """Integers of a weight, column by column: what one loses the later ones make up for.

    With ``H = M + damp·mean(diag M)·I`` and ``U`` the upper Cholesky factor of ``H⁻¹``, column i is
    rounded and every later one moved by ``−(wᵢ − ŵᵢ)/Uᵢᵢ · Uᵢⱼ``, the optimum for the rest
    (OBQ's equation 3 with a fixed order, arXiv:2210.17323, algorithm 1). weight (rows, columns),
    moment (columns, columns); computed in fp64. Without ``damp`` a moment that is singular, as of
    fewer rows than columns, is damped by the least tenfold of 1e-8 that makes it regular.
    """
    columns = weight.shape[1]
    index = torch.arange(columns, device=weight.device)
    if order == "falling":
        index = moment.diagonal().argsort(descending=True, stable=True)
    w, m = weight.double().T[index], moment.double()[index][:, index]  # a column lies in one piece
    upper, scaled = _upper(m, damp), Grid(found.scheme, *(
        each if each is None else each.double() for each in found[1:]
    ))  # fmt: skip
    codes = torch.empty_like(w)
    for start in range(0, columns, _BLOCK):
        end = min(start + _BLOCK, columns)
        lost = torch.zeros_like(w[start:end])
        for i in range(start, end):
            codes[i] = scaled.codes(w[i][:, None])[:, 0]
            off = (w[i] - codes[i] * scaled.scale[:, 0]) / upper[i, i]
            w[i + 1 : end] -= upper[i, i + 1 : end, None] * off
            lost[i - start] = off
        w[end:] -= upper[start:end, end:].T @ lost
    back = torch.empty_like(codes)
    back[index] = codes
    return back.T.contiguous().to(weight.dtype)


def _upper(moment: Tensor, damp: float) -> Tensor:
    """The upper Cholesky factor of the inverse of a damped moment."""
    eye = torch.eye(len(moment), dtype=moment.dtype, device=moment.device)
    mean = moment.diagonal().mean().clamp(min=1e-30)
    while True:
        try:
            lower = torch.linalg.cholesky(moment + damp * mean * eye)
            return torch.linalg.cholesky(torch.cholesky_inverse(lower), upper=True)
        except torch.linalg.LinAlgError:
            damp = max(10 * damp, 1e-8)


def followed(weight: Tensor, own: Inputs, damp: float) -> Tensor:
    """The weight nearest to the teacher's output on what rounded layers give, by least squares.

    Of ``‖W·x − W'·x̂‖²``, the teacher's inputs x and the rounded model's x̂: :func:`.nearest`.
    """
    return nearest(weight, own.moment, weight @ own.cross, damp)


def rounded(weight: Tensor, moment: Tensor, scheme: Scheme, how: Calibrated) -> Quantized:
    """A weight as integers and scales, by what it reads: ``how`` says how."""
    found = searched(weight, moment, scheme) if how.scale == "search" else grid(weight, scheme)
    for _ in range(1 + (how.scale == "search")):
        if how.method == "gptq":
            codes = gptq(weight, moment, found, how.order, how.damp)
        else:
            codes = found.codes(weight)
        if how.scale == "range":
            break
        found = refitted(weight, moment, found, codes)
    return Quantized(codes, found.scale, found.zero)


@torch.no_grad()
def round_(
    model: PreTrainedModel, teacher: PreTrainedModel, data: Calibration, how: Calibrated
) -> None:
    """Packs every matrix of the encoder in the order in which they run, in place.

    ``model`` is ``teacher`` with layers that quantize; each reads what the packed ones before it
    give.
    """
    batches, order = list(data.batches()), in_order(model, next(data.batches()))
    places = {module: name for name, module in model.named_modules()}
    for layer in dict.fromkeys(encoder_layers(model)):  # ALBERT's is listed for every turn
        inside = places.get(layer, "") + "."
        mine = [names for names in order if names[0].startswith(inside)]
        if not mine:  # all are another layer's, which it shares
            continue
        calls = calls_of(model, layer, batches)
        first = calls
        if how.follow:
            first = calls_of(teacher, teacher.get_submodule(places[layer]), batches)
        for names in mine:
            _round_together_(model, teacher, names, how, calls, first)


def _round_together_(model: PreTrainedModel, teacher: PreTrainedModel, names: Sequence[str],
                     how: Calibrated, calls: list[Call], first: list[Call]) -> None:  # fmt: skip
    """Packs matrices that read one tensor, in place."""
    matrix, own = (each.get_submodule(names[0]) for each in (model, teacher))
    read = inputs_of(matrix, own, calls, first)
    if read.tokens < len(read.moment):
        few = f"{read.tokens} tokens were read for the {len(read.moment)} inputs of {names[0]}"
        damped = f"its Hessian is singular, and damped by {how.damp:g} of its mean"
        warnings.warn(f"{few}: {damped}; more rows round better", stacklevel=2)
    for name in names:
        layer, own = model.get_submodule(name), teacher.get_submodule(name)
        packed = PackedLinear.like(layer, layer.weights, layer.inputs)
        weight = own.weight.float()
        seen = read if own.bias is None else read.centred()
        wanted = followed(weight, seen, how.damp) if how.follow else weight
        packed.hold_(rounded(wanted, seen.moment, layer.weights, how))
        if own.bias is not None:
            mean = read.first if how.follow else read.mean
            lost = weight @ mean - packed.quantized().dequantize() @ read.mean
            packed.store_bias_(own.bias + lost)
        replace_module_(model, name, packed)
