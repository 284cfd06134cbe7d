"""Milliseconds: models measured in turns, a model's components, and what the machine can do."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial

import numpy as np
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from xtclib.clock import in_turns, quartiles, time_of, wait
from xtclib.costs.breakdown import component_of, fitting, layer_of
from xtclib.costs.parts import COMPONENTS


def random_ids(vocabulary: int, batch: int, length: int) -> Tensor:
    """Ids (batch, length) of ordinary words, the same on every call."""
    generator = torch.Generator().manual_seed(0)
    return torch.randint(5, vocabulary, (batch, length), generator=generator)


def of_models(
    models: Mapping[str, PreTrainedModel],
    batch: int = 8,
    length: int = 32,
    repeats: int | None = None,
    given: Sequence[Mapping[str, Tensor]] = (),
    pause: float = 0.0,
) -> dict:
    """Forward latency of several models on the same random batch, with device and threads.

    ``given``: batches of real rows instead, where the time depends on them; then of one of them.
    ``pause``: as for :func:`xtclib.clock.in_turns`, where several runtimes take turns.

    ``repeats``: by default what two seconds have room for, from 10 to 200. A model of a few
    milliseconds needs many: a busy machine takes them away ten at a time.
    """
    device = next(iter(models.values())).device
    if not given:
        ids = random_ids(min(m.config.vocab_size for m in models.values()), batch, length)
        given = [{"input_ids": ids, "attention_mask": torch.ones_like(ids)}]
    rows = [{name: tensor.to(device) for name, tensor in each.items()} for each in given]

    runs = {n: partial(_through, m, rows) for n, m in models.items()}
    with torch.inference_mode():
        repeats = repeats or enough(runs, 2.0)
        found = in_turns(runs, repeats, pause=pause)
    for times in found.values() if len(rows) > 1 else ():
        times |= {name: round(value / len(rows), 3) for name, value in times.items()}
    return {
        "batch": batch, "length": length, "repeats": repeats, "device": device.type,
        "threads": torch.get_num_threads(), "milliseconds": found,
    }  # fmt: skip


def _through(model: nn.Module, rows: Iterable[Mapping[str, Tensor]]) -> None:
    for each in rows:
        model(**each)


def enough(runs: Mapping[str, Callable[[], object]], seconds: float) -> int:
    """How many turns of all take so long, from 10 to 200."""
    turns = in_turns(runs, repeats=3, warm_up=1)
    turn = sum(found["median"] for found in turns.values()) / 1e3
    return int(np.clip(seconds / max(turn, 1e-6), 10, 200))


@dataclass(frozen=True)
class ComponentLatency:
    """Milliseconds of every component, beside those of the whole model without any timer in it.

    ``whole`` is the median of ``repeats`` runs, ``low`` and ``high`` their quartiles;
    ``components`` and ``layers`` (``None``: outside the layers) are means over the middle half of
    as many timed runs. ``coverage`` is the sum of the parts over the whole: near 1 if the timers
    disturb little.
    """

    model: str
    batch: int
    length: int
    repeats: int
    device: str
    threads: int
    whole: float
    low: float
    high: float
    components: dict[str, float]
    layers: dict[int | None, float] = field(default_factory=dict)

    @property
    def coverage(self) -> float:
        """Sum of the components ÷ the whole, both measured in turns."""
        return sum(self.components.values()) / self.whole

    def shares(self) -> dict[str, float]:
        """Each component's part of the sum."""
        total = sum(self.components.values())
        return {name: value / total for name, value in self.components.items()}

    def table(self, key: str = "component") -> str:
        """Components or layers as text: milliseconds, shares, how the sum compares to the whole."""
        lines = [
            f"{self.model}, batch {self.batch}, length {self.length}: {self.whole:.1f} ms "
            f"({self.low:.1f} to {self.high:.1f}), {self.device}, {self.threads} "
            f"thread{'s' * (self.threads > 1)}, fp32, median of {self.repeats}"
        ]
        total = sum(self.components.values())
        parts = self.components if key == "component" else self.layers
        for name, value in parts.items():
            shown = "outside" if name is None else str(name)
            lines.append(f"{shown:<22}{value:>10.2f} ms{100 * value / total:>7.1f} %")
        off = abs(self.coverage - 1) > 0.1
        lines.append(
            f"{'sum of the parts':<22}{total:>10.2f} ms{100 * self.coverage:>7.1f} % of the whole"
            + ": a model this small, or a machine this busy, is disturbed by timers" * off
        )
        return "\n".join(lines)


def of_components(
    source, batch: int = 1, length: int = 128, repeats: int = 20, warm_up: int = 3,
    extend: bool = False,
) -> ComponentLatency:  # fmt: skip
    """Times every component of a model on this machine, eager attention, fp32, random weights.

    ``source`` as for :func:`breakdown.break_down`, or a model that has weights. Each module's own
    time is its total less that of the modules in it, so the parts add up to the whole; what stands
    in no module of its own goes to the block around it: scores, softmax and context to attention,
    residual additions to *norm and residual*, masks to *other*. Timed runs and undisturbed ones
    take turns; what a timer costs, measured on empty modules, is taken off.

    Raises ``ValueError`` for a length past the model's positions, unknown names and structures.
    """
    if repeats < 1:
        raise ValueError(f"repeats must be at least 1, received {repeats}")
    model = fitting(source, batch, length, extend)
    if next(model.parameters()).device.type == "meta":
        model = _random_weights(model)
    device = next(model.parameters()).device
    vocabulary = getattr(getattr(model, "config", None), "vocab_size", 256)
    ids = random_ids(vocabulary, batch, length).to(device)
    whole, runs = [], []
    cost = _timer_cost()
    was_training = model.training
    model.eval()
    with torch.inference_mode():
        for turn in range(warm_up + repeats):
            undisturbed = time_of(partial(model, input_ids=ids))
            found = _timed(model, ids, cost)
            if turn >= warm_up:
                whole.append(1e3 * undisturbed)
                runs.append({key: 1e3 * seconds for key, seconds in found.items()})
    model.train(was_training)
    spread = quartiles(whole)
    # Means of the same runs: medians of parts would not add up to the median of their sum.
    middle = sorted(runs, key=lambda run: sum(run.values()))
    middle = middle[len(middle) // 4 : max(-(-3 * len(middle) // 4), len(middle) // 4 + 1)]
    means: dict[tuple, float] = {}
    for run in middle:
        for key, value in run.items():
            means[key] = means.get(key, 0.0) + value / len(middle)

    def summed(at: int, keys: Iterable) -> dict:
        """The means by component (0) or layer (1)."""
        return {key: sum(v for k, v in means.items() if k[at] == key) for key in keys}

    here, depths = {key[0] for key in means}, {key[1] for key in means}
    return ComponentLatency(
        source if isinstance(source, str) else type(model).__name__,
        batch, length, repeats, device.type, torch.get_num_threads(), spread["median"],
        spread["low"], spread["high"], summed(0, (name for name in COMPONENTS if name in here)),
        summed(1, sorted(depths, key=lambda layer: -1 if layer is None else layer)),
    )  # fmt: skip


def _random_weights(model: nn.Module) -> nn.Module:
    """The meta-device model with small random weights: its speed is that of any weights."""
    model = model.to_empty(device="cpu")
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0, 0.02, generator=generator)
        for name, buffer in model.named_buffers():
            if "position" in name:
                buffer.copy_(torch.arange(buffer.numel()).view_as(buffer))
            else:
                buffer.zero_()
    return model


def _timed(
    model: nn.Module, ids: Tensor, cost: tuple[float, float] = (0.0, 0.0)
) -> dict[tuple[str, int | None], float]:
    """One run; seconds that modules spend outside the modules in them, by component and layer.

    ``cost`` of a timer, to be taken off: within the module's own time, and around it.
    """
    found: dict[tuple[str, int | None], float] = {}
    calls: dict[nn.Module, int] = {}
    stack: list[list[float]] = []  # of each open module: when it began, what its parts took

    def enter(module: nn.Module, inputs: tuple) -> None:
        wait()
        stack.append([time.perf_counter(), 0.0])

    def leave(component: str, name: str) -> Callable:
        def left(module: nn.Module, inputs: tuple, output: object) -> None:
            wait()
            start, inside = stack.pop()
            total = time.perf_counter() - start
            key = component, layer_of(name, calls.get(module, 0))
            calls[module] = calls.get(module, 0) + 1
            found[key] = found.get(key, 0.0) + total - inside - cost[0]
            if stack:
                stack[-1][1] += total + cost[1]

        return left

    hooks = []
    for module, component, name in _borders(model):
        hooks.append(module.register_forward_pre_hook(enter))
        hooks.append(module.register_forward_hook(leave(component, name)))
    try:
        model(input_ids=ids)
    finally:
        for handle in hooks:
            handle.remove()
    return found


def _timer_cost(count: int = 200, repeats: int = 7) -> tuple[float, float]:
    """Seconds that a timer adds within a module's own time and around it, on empty modules."""
    model = nn.Sequential(*(nn.Identity() for _ in range(count)))
    x, begun, own = torch.zeros(1), [], []

    def enter(*_) -> None:
        begun.append(time.perf_counter())

    def leave(*_) -> None:
        own.append(time.perf_counter() - begun.pop())

    run = partial(time_of, partial(model, x))
    plain = min(run() for _ in range(repeats))
    for module in model:
        module.register_forward_pre_hook(enter)
        module.register_forward_hook(leave)
    timed = min(run() for _ in range(repeats))
    within = float(np.median(own))
    return within, max((timed - plain) / count - within, 0.0)


def _borders(
    module: nn.Module, name: str = "", around: tuple | None = None
) -> Iterator[tuple[nn.Module, str, str]]:
    """Where another component or layer begins: the fewest timers that tell all apart."""
    component = component_of(name)
    called = not isinstance(module, (nn.ModuleList, nn.Dropout))
    if called and (component, layer_of(name)) != around:
        yield module, component, name
        around = component, layer_of(name)
    for child_name, child in module.named_children():
        yield from _borders(child, f"{name}.{child_name}".lstrip("."), around)


def machine(repeats: int = 10) -> dict[str, float]:
    """This machine's own limits: GFLOP/s of an fp32 matrix product, and GB/s of reading weights.

    A 1024² product, and a product with one vector of 64 MB of weights (more than a cache holds),
    the best of ``repeats`` each. Their ratio is the roofline's ridge: operations a byte from which
    on arithmetic, not memory, sets the time.
    """
    square, wide, vector = torch.rand(1024, 1024), torch.rand(4096, 4096), torch.rand(4096)
    runs = (lambda: square @ square, lambda: wide @ vector)
    with torch.inference_mode():
        turns = [[time_of(run) for run in runs] for _ in range(repeats)]
    arithmetic, reading = map(min, zip(*turns, strict=True))
    gflops, gbytes = 2 * 1024**3 / arithmetic / 1e9, wide.numel() * 4 / reading / 1e9
    ridge, threads = gflops / gbytes, torch.get_num_threads()
    return {"gflops": gflops, "gbytes": gbytes, "ridge": ridge, "threads": threads}


def product_speed(tokens: int, inputs: int, outputs: int, repeats: int = 20) -> tuple[float, float]:
    """(operations a byte, GFLOP/s) of one fp32 linear layer on so many tokens.

    Bytes are those of weights, input and output, each moved once; the best of ``repeats``. The
    weights change from run to run, so that they come from memory and not from a cache.
    """
    copies = max(2, 2**28 // (4 * inputs * outputs))
    weights = torch.rand(min(copies, 32), outputs, inputs)
    x = torch.rand(tokens, inputs)
    with torch.inference_mode():
        times = [
            time_of(partial(nn.functional.linear, x, weights[turn % len(weights)]))
            for turn in range(repeats + 3)
        ]
    operations = 2 * tokens * inputs * outputs
    moved = 4 * (inputs * outputs + tokens * (inputs + outputs))
    return operations / moved, operations / min(times[3:]) / 1e9
