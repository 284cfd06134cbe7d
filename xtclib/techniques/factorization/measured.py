"""What a task's rows say of a model's matrices: their inputs, their gradients, what rounding costs.

Matrices go by their full names, as :func:`xtclib.bert.encoder_linears` has them.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from itertools import islice

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from xtclib.bert import encoder_linears
from xtclib.tasks.base import Task


@torch.no_grad()
def second_moments(
    model: PreTrainedModel, batches: Iterable[dict], ones: bool = False
) -> dict[str, Tensor]:
    """``E[x·xᵀ]`` of each matrix's inputs over real tokens: (inputs, inputs), by name.

    ``ones``: of inputs with a 1 at their end, which a bias multiplies.
    """
    sums: dict[str, Tensor] = {}

    def add(name: str, seen: Tensor, _: nn.Module, inputs: tuple, __: Tensor) -> None:
        x = inputs[0].float()  # of tokens, or DeBERTa's relative positions, which all count
        x = x[seen] if x.shape[:2] == seen.shape else x.flatten(0, -2)
        x = nn.functional.pad(x, (0, 1), value=1) if ones else x
        sums[name] = sums.get(name, 0) + x.T @ x

    count = 0
    for batch, seen in _run(model, batches, add):
        model(**{name: value for name, value in batch.items() if name != "labels"})
        count += int(seen.sum())
    return {name: total / max(count, 1) for name, total in sums.items()}


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
    for name, weight in changed.items():
        linear = encoder_linears(model)[name]
        own, linear.weight.data = linear.weight.data, weight
        far[name] = float((answers() - before).square().sum(-1).mean())
        linear.weight.data = own
    model.train(was_training)
    return far
