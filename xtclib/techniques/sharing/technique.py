"""Sharing as a technique: which layers have one set of weights, and what it starts from."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from xtclib.bert import PARTS, encoder_layers, is_shared, part_names, replace_module_
from xtclib.config import Size, config
from xtclib.tasks.rows import Calibration
from xtclib.techniques.base import (
    Technique,
    check_finite,
    check_plain,
    count_of,
    needs,
    refuse_packed,
    register,
)
from xtclib.techniques.measured import second_moments
from xtclib.techniques.sharing.layers import Again
from xtclib.techniques.sharing.sets import least_squares, mean, sets_of
from xtclib.techniques.students.theseus import being_replaced

_ATTENTION, _FEED_FORWARD = PARTS[:4], PARTS[4:]


@register
@config
class ShareLayers(Technique):
    """Gives several layers of the encoder one set of weights.

    ``groups``: how many sets there are, as a count that divides the layers or a share of them; as
    many as layers leave the model as it is. ``order``: layers that follow each other have one set
    (``consecutive``), or the sets take turns (``cyclic``). ``part``: whole layers, or what holds
    the matrices of one of their two parts, which in BERT's has a norm too. ``start``: the ``mean``
    of the layers' weights, the ``first`` one's, or for every matrix and its bias the
    ``least-squares`` fit to the outputs of all on the task's rows (:func:`.sets.least_squares`),
    norms by the mean. List it after what cuts parts and before ``quantize``.

    Sources: Lan et al. 2020 (ALBERT), arXiv:1909.11942, section 3.1; the cyclic order: Takase and
    Kiyono 2021, arXiv:2104.06022.

    >>> ShareLayers(groups=0.5).sets(4), ShareLayers(groups=2, order="cyclic").sets(4)
    ([[0, 1], [2, 3]], [[0, 2], [1, 3]])
    """

    name: ClassVar[str] = "share_layers"
    family: ClassVar[str] = "shared"
    reshapes: ClassVar[bool] = True
    part: Literal["all", "attention", "feed-forward"] = "all"
    groups: Size = 1
    order: Literal["consecutive", "cyclic"] = "consecutive"
    start: Literal["mean", "first", "least-squares"] = "mean"
    stored = True

    def sets(self, depth: int) -> list[list[int]]:
        """The 0-based layers of each set; ``ValueError`` for sets that do not divide the layers."""
        whole = isinstance(self.groups, int)
        count = self.groups if whole else count_of(self.groups, depth, "layers")
        return sets_of(depth, count, self.order)  # type: ignore[arg-type]

    @property
    def looks_at(self) -> int:
        return Calibration.rows if self.start == "least-squares" else 0

    def apply(self, model: PreTrainedModel, data: Calibration | None = None) -> PreTrainedModel:
        refuse_packed(model)
        if any(isinstance(module, Again) for module in model.modules()):
            raise ValueError("the layers of this model share already: one share_layers is enough")
        if being_replaced(model):
            replaced = "the modules of this model are being replaced"
            raise ValueError(f"{replaced}: list keep_successors before share_layers")
        check_plain(model, self.name)
        check_finite(model, "cannot share the layers of this model")
        model = copy.deepcopy(model)
        shared, moments = self._shared(model), dict[str, Tensor]()
        if self.start == "least-squares" and shared:
            rows = needs(data, "share_layers by least-squares")
            moments = second_moments(model, rows.batches(), ones=True)
        for places in shared if self.start != "first" else ():
            modules = [model.get_submodule(place) for place in places]
            fitted = _fitted(modules, [_below(place, moments) for place in places])
            _to_mean_(modules)
            modules[0].load_state_dict(fitted, strict=False)
        _follow_(model, shared)
        return model

    def rebuild(self, model: PreTrainedModel) -> None:
        _follow_(model, self._shared(model))

    outline = rebuild

    def _shared(self, model: PreTrainedModel) -> list[list[str]]:
        """The names of the modules that are to be one, checked to be alike; one leads the rest."""
        kind, layers = type(model).__name__, encoder_layers(model)
        if is_shared(model):
            raise TypeError(f"all layers of {kind} are one already: share_layers has none to share")
        names = {module: name for name, module in model.named_modules()}
        inside = [""]
        if self.part != "all":
            chosen = _ATTENTION if self.part == "attention" else _FEED_FORWARD
            tops = (part_names(layers[0])[name].partition(".")[0] for name in chosen)
            inside = [f".{top}" for top in dict.fromkeys(tops)]
        sets = [one for one in self.sets(len(layers)) if len(one) > 1]
        found = [[names[layers[i]] + top for i in one] for one in sets for top in inside]
        for first, *others in found:
            for other in others:
                _check_alike(model, first, other)
        return found


def _check_alike(model: PreTrainedModel, *names: str) -> None:
    """Raises ``ValueError`` for two modules that cannot have one set of weights."""
    one, other = (model.get_submodule(name) for name in names)
    shapes = [{n: tuple(t.shape) for n, t in m.state_dict().items()} for m in (one, other)]
    said, cure = [*shapes, _facts(one), _facts(other)], "choose groups of layers that are alike"
    for ours, theirs in (said[:2], said[2:]):
        for name, value in ours.items():
            if theirs.get(name, value) != value:
                has = f"their {name} is {value} and {theirs[name]}"
                raise ValueError(f"{' and '.join(names)} cannot share: {has}; {cure}")


def _facts(module: nn.Module) -> dict[str, Any]:
    """What the modules of one are beside their weights: kinds, sizes, windows."""
    return {
        f"{name}.{key}".lstrip("."): value
        for name, each in module.named_modules()
        for key, value in {**vars(each), "kind": type(each).__name__}.items()
        if isinstance(value, (int, float, str, type(None)))
        and not key.startswith("_")
        and key != "layer_idx"
    }


def _below(place: str, moments: dict[str, Tensor]) -> dict[str, Tensor]:
    """The moments of the matrices of a module, by their names within it."""
    start = f"{place}."
    return {n.removeprefix(start): m for n, m in moments.items() if n.startswith(start)}


def _fitted(
    modules: Sequence[nn.Module], moments: Sequence[dict[str, Tensor]]
) -> dict[str, Tensor]:
    """For each matrix with moments, and its bias, the fit to the outputs of all, by name.

    ``moments``: for each module, of inputs with a 1 at their end.
    """
    found = {}
    for name in moments[0]:
        linears = [module.get_submodule(name) for module in modules]
        seen, weights = [each[name] for each in moments], [each.weight for each in linears]
        if linears[0].bias is None:
            found[f"{name}.weight"] = least_squares(weights, [m[:-1, :-1] for m in seen])
            continue
        wide = [torch.cat([each.weight, each.bias[:, None]], 1) for each in linears]
        fit = least_squares(wide, seen)
        found |= {f"{name}.weight": fit[:, :-1], f"{name}.bias": fit[:, -1]}
    return found


@torch.no_grad()
def _to_mean_(modules: Sequence[nn.Module]) -> None:
    """Gives the first of some modules the mean of the parameters of all."""
    for each in zip(*(module.parameters() for module in modules), strict=True):
        each[0].copy_(mean(each))


def _follow_(model: PreTrainedModel, shared: list[list[str]]) -> None:
    """Puts in place of each module but the first of a set one that runs the first."""
    for first, *others in shared:
        leader = model.get_submodule(first)
        for other in others:
            replace_module_(model, other, Again(leader))
