"""What a task's rows say of a model's matrices: their inputs, their gradients, what rounding costs.

Matrices go by their full names, as :func:`xtclib.bert.encoder_linears` has them.
"""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from itertools import islice
from typing import NamedTuple

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from xtclib.bert import encoder_layers, encoder_linears
from xtclib.tasks.base import Task


def nearest(weight: Tensor, moment: Tensor, wanted: Tensor, damp: float) -> Tensor:
    """The matrix with the least ``E‖W'·x − y‖²``, drawn to W: ``W + (E[y·xᵀ] − W·M)·(M + λI)⁻¹``.

    ``λ = damp ·`` the mean of M's diagonal: where inputs never come, W stays. weight (outputs,
    inputs), moment ``M = E[x·xᵀ]`` (inputs, inputs), wanted ``E[y·xᵀ]`` (outputs, inputs); in fp64.

    >>> nearest(torch.zeros(1, 1), torch.tensor([[2.0]]), torch.tensor([[6.0]]), 0.0)
    tensor([[3.]])
    """
    w, m = weight.double(), moment.double()
    damped = m + damp * m.diagonal().mean().clamp(min=1e-30) * torch.eye(len(m)).to(m)
    return (w + torch.linalg.solve(damped, wanted.double() - w @ m, left=False)).to(weight.dtype)


@torch.no_grad()
def second_moments(
    model: PreTrainedModel, batches: Iterable[dict], ones: bool = False
) -> dict[str, Tensor]:
    """``E[x·xᵀ]`` of each matrix's inputs over real tokens: (inputs, inputs), by name.

    ``ones``: of inputs with a 1 at their end, which a bias multiplies.
    """
    sums: dict[str, Tensor] = {}

    def add(name: str, seen: Tensor, _: nn.Module, inputs: tuple, __: Tensor) -> None:
        x = _tokens(inputs[0], seen)
        x = nn.functional.pad(x, (0, 1), value=1) if ones else x
        sums[name] = sums.get(name, 0) + x.T @ x

    count = 0
    for batch, seen in _run(model, batches, add):
        model(**{name: value for name, value in batch.items() if name != "labels"})
        count += int(seen.sum())
    return {name: total / max(count, 1) for name, total in sums.items()}


def _tokens(x: Tensor, seen: Tensor) -> Tensor:
    """Inputs of real tokens, (tokens, inputs); of DeBERTa's relative positions all."""
    x = x.float()
    return x[seen] if x.shape[:2] == seen.shape else x.flatten(0, -2)


@torch.no_grad()
def largest_inputs(model: PreTrainedModel, batches: Iterable[dict]) -> dict[str, Tensor]:
    """``max|x|`` of each of a matrix's inputs: (inputs,), by name.

    Over padding too, as a scale that serves a whole tensor is.
    """
    found: dict[str, Tensor] = {}

    def note(name: str, _: Tensor, __: nn.Module, inputs: tuple, ___: Tensor) -> None:
        largest = inputs[0].float().abs().flatten(0, -2).amax(0)
        found[name] = torch.maximum(found.get(name, largest), largest)

    for batch, _ in _run(model, batches, note):
        model(**{name: value for name, value in batch.items() if name != "labels"})
    return found


@torch.no_grad()
def in_order(model: PreTrainedModel, batch: dict) -> list[list[str]]:
    """Names of the encoder's matrices as they run, those that read one tensor together."""
    read: list[tuple[Tensor, list[str]]] = []

    def note(name: str, _: Tensor, __: nn.Module, inputs: tuple, ___: Tensor) -> None:
        if any(name in names for _, names in read):
            return  # a layer that is used in turns
        if not (read and read[-1][0] is inputs[0]):
            read.append((inputs[0], []))
        read[-1][1].append(name)

    for each, _ in _run(model, [batch], note):
        model(**{name: value for name, value in each.items() if name != "labels"})
    return [names for _, names in read]


class Inputs(NamedTuple):
    """What a matrix reads in a model, x̂, and in the one that it was made from, x, over real tokens.

    ``moment`` = E[x̂·x̂ᵀ] and ``cross`` = E[x·x̂ᵀ] (inputs, inputs), ``mean`` = E[x̂] and ``first`` =
    E[x] (inputs,). ``tokens``: how many were read.
    """

    moment: Tensor
    cross: Tensor
    mean: Tensor
    first: Tensor
    tokens: int = 0

    def centred(self) -> Inputs:
        """The same less the means, which a bias takes up."""
        moment = self.moment - torch.outer(self.mean, self.mean)
        cross = self.cross - torch.outer(self.first, self.mean)
        return self._replace(moment=moment, cross=cross)


class Call(NamedTuple):
    """A layer with what it is called with for a batch, to run it alone, and the batch's mask."""

    run: Callable[[], object]
    seen: Tensor


@torch.no_grad()
def calls_of(model: PreTrainedModel, layer: nn.Module, batches: Iterable[dict]) -> list[Call]:
    """A layer's own call for each batch: what comes before it runs once, what follows not at all.

    Of a layer that is used in turns it is the first.
    """
    found: list[Call] = []

    def stop(_: nn.Module, inputs: tuple, named: dict) -> None:
        found.append(Call(partial(layer, *inputs, **named), seen))
        raise _Enough

    hook = layer.register_forward_pre_hook(stop, with_kwargs=True)
    for batch in batches:
        batch = {key: value.to(model.device) for key, value in batch.items() if key != "labels"}
        seen = batch["attention_mask"].bool()
        with contextlib.suppress(_Enough):
            model(**batch)
    hook.remove()
    return found


@torch.no_grad()
def inputs_of(matrix: nn.Module, own: nn.Module, calls: Sequence[Call],
              first: Sequence[Call]) -> Inputs:  # fmt: skip
    """What a matrix reads in a model, and ``own`` in the one that it was made from: both's calls.

    With ``first`` as ``calls`` those are one.
    """
    sums, count = [0.0] * 4, 0
    for now, before in zip(calls, first, strict=True):
        (new,) = reads(now, [matrix])
        x = new if before is now else reads(before, [own])[0]
        parts = new.T @ new, x.T @ new, new.sum(0), x.sum(0)
        sums = [total + part for total, part in zip(sums, parts, strict=True)]
        count += len(x)
    return Inputs(*(total / count for total in sums), tokens=count)  # type: ignore[arg-type, misc]


class _Enough(Exception):
    """Nothing after this is needed."""


@torch.no_grad()
def reads(call: Call, matrices: Sequence[nn.Module]) -> list[Tensor]:
    """What matrices read in a call, (tokens, inputs) each; what follows them is not computed."""
    found: dict[nn.Module, Tensor] = {}

    def note(matrix: nn.Module, inputs: tuple) -> None:
        found.setdefault(matrix, inputs[0])
        if len(found) == len(matrices):
            raise _Enough

    hooks = [matrix.register_forward_pre_hook(note) for matrix in matrices]
    with contextlib.suppress(_Enough):
        call.run()
    for hook in hooks:
        hook.remove()
    return [_tokens(found[matrix], call.seen) for matrix in matrices]


def fisher(model: PreTrainedModel, batches: Iterable[dict], task: Task) -> dict[str, Tensor]:
    """``E_d[Σ_outputs (∂L(d)/∂W)²]`` over rows d, for each input of a matrix: (inputs,), by name.

    Every row's gradient is squared by itself. Source: Hsu et al. 2022, arXiv:2207.00112, equations
    4 and 5.
    """
    sums: dict[str, Tensor] = {}
    slopes: dict[str, Tensor] = {}
    model = copy.deepcopy(model).eval().requires_grad_(False)

    def note(name: str, seen: Tensor, _: nn.Module, inputs: tuple, output: Tensor) -> None:
        if output.requires_grad:  # else no token goes through, but DeBERTa's relative positions
            output.register_hook(partial(add, name, inputs[0].detach()))

    def add(name: str, x: Tensor, slope: Tensor) -> None:
        # ∂L/∂W of a row: the sum of its tokens' products, over all turns of a shared layer.
        each = torch.einsum("bto,bti->boi", slope.float(), x.float())
        slopes[name] = slopes.get(name, 0) + each

    model.get_input_embeddings().requires_grad_(True)  # so that gradients come by every matrix
    rows = 0
    for batch, seen in _run(model, batches, note):
        labels = batch.pop("labels")
        logits, wanted = task.answers(model(**batch), labels, batch["attention_mask"])
        (len(seen) * task.loss(logits, wanted)).backward()
        for name in list(slopes):
            sums[name] = sums.get(name, 0) + slopes.pop(name).square().sum((0, 1))
        rows += len(seen)
    return {name: total / max(rows, 1) for name, total in sums.items()}


def _run(model: PreTrainedModel, batches: Iterable[dict], hook: Callable):
    """Each batch on the model's device with its mask, with ``hook`` at every matrix meanwhile."""
    names = {module: name for name, module in encoder_linears(model).items()}
    was_training = model.training
    model.eval()
    for batch in batches:
        batch = {name: value.to(model.device) for name, value in batch.items()}
        seen = batch["attention_mask"].bool()
        hooks = [m.register_forward_hook(partial(hook, name, seen)) for m, name in names.items()]
        yield batch, seen
        for each in hooks:
            each.remove()
    model.train(was_training)


@contextlib.contextmanager
def below(layers: Sequence[nn.Module], kept: list) -> Iterator[None]:
    """What the last of some layers gives is kept, call by call, or, once it is, given again.

    Then none of them computes anything. Layers that share their weights compute as ever.
    """
    if not layers or any(hasattr(layer, "leader") for layer in layers):
        yield
    elif not kept:
        with layers[-1].register_forward_hook(lambda _, __, output: kept.append(output)):
            yield
    else:
        turns = iter(kept)
        current: list = []

        def first(*_: object, **__: object) -> object:
            current[:] = [next(turns)]
            return current[0]

        for layer in layers:  # what all but the last give, nobody computes with
            layer.forward = lambda *_, **__: current[0]
        layers[0].forward = first
        try:
            yield
        finally:
            for layer in layers:
                del layer.forward


@torch.no_grad()
def moved(model: PreTrainedModel, changed: Mapping[str, Tensor], batches: Iterable[dict],
          task: Task) -> dict[str, float]:  # fmt: skip
    """``E‖z − z'‖²`` of the answers z over rows when one weight alone is another, by name.

    Over eight batches: each weight is a pass over them.
    """
    batches = list(islice(batches, 8))

    def answers() -> Tensor:
        found = []
        for batch in batches:
            batch = {name: value.to(model.device) for name, value in batch.items()}
            labels = batch.pop("labels")
            found.append(task.answers(model(**batch), labels, batch["attention_mask"])[0])
        return torch.cat(found)

    was_training = model.training
    model.eval()
    before, far = answers(), {}
    layers, linears = encoder_layers(model), encoder_linears(model)
    at, kept = -1, list[object]()
    for name, weight in changed.items():
        linear = linears[name]
        own, linear.weight.data = linear.weight.data, weight
        last, at = at, next(i for i, layer in enumerate(layers) if linear in layer.modules())
        kept = kept if at == last else []  # what lies below this layer, once for all its weights
        with below(layers[:at], kept):
            far[name] = float((answers() - before).square().sum(-1).mean())
        linear.weight.data = own
    model.train(was_training)
    return far
