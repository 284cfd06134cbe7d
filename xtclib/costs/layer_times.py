"""What a model will take on this machine, from the times of its layers, each measured once."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from xtclib import attention, cache
from xtclib.bert import encoder_layers
from xtclib.clock import in_turns
from xtclib.costs import latency
from xtclib.files import write_json
from xtclib.techniques.base import Stored


def predicted(
    model: PreTrainedModel, batch: int = 1, length: int = 128, again: bool = False,
    device: str = "cpu",
) -> float:  # fmt: skip
    """Milliseconds of a forward pass: ``Σ layers + what is around them``, in fp32.

    ``model`` may be an empty one on the meta device, as :func:`xtclib.artefact.ledger.planned`
    gives: its speed is that of any weights. Layers of one structure are measured once, so many in a
    row as the model has (a single one would stay in the processor's cache), on what such a model
    gives them; the cache keeps them by machine, threads, batch and length, and ``again`` measures
    anew. What leaves rows or tokens out on its way is counted in full.
    """
    layers = _layers(model)
    machine = f"{torch.get_num_threads()} threads, {torch.backends.cpu.get_cpu_capability()}"
    machine = machine if device == "cpu" else torch.cuda.get_device_name()
    attends = getattr(model.config, "_attn_implementation", None)
    where = batch, length, machine, "as stored" if _is_empty(model) else attends
    alike: dict[str, list[int]] = {}
    for place, layer in enumerate(layers):
        alike.setdefault(cache.key(_about(layer)), []).append(place)
    names = {cache.key(about, len(places), *where, torch.__version__): places
             for about, places in alike.items()}  # fmt: skip
    inside = {id(part) for layer in layers for part in layer.modules()}
    rest = cache.key(_about(model, inside), len(layers) > 0, *where, torch.__version__)
    folders = {name: cache.cache_dir() / "layers" / name for name in (*names, rest)}
    if again or not all((folder / "ms.json").is_file() for folder in folders.values()):
        ids = latency.random_ids(model.config.vocab_size, batch, length).to(device)
        for name, milliseconds in _measured(model, names, rest, ids).items():
            if again or not (folders[name] / "ms.json").is_file():
                with cache.writing(folders[name]):
                    write_json(folders[name] / "ms.json", milliseconds)
    return sum(map(_read, folders.values()))


def _layers(model: PreTrainedModel) -> list[nn.Module]:
    """The encoder's layers; none where the model has another shape, and is measured as one."""
    try:
        return [*encoder_layers(model)]
    except TypeError:
        return []


def _read(folder: Path) -> float:
    return float(json.loads((folder / "ms.json").read_text(encoding="utf-8")))


def _about(module: nn.Module, without: Iterable[int] = ()) -> list:
    """What sets the time of a module: kinds, shapes and types, and how values are rounded."""
    found = []
    for name, part in module.named_modules():
        if id(part) in without:
            continue
        own = [*part.named_parameters(recurse=False), *part.named_buffers(recurse=False)]
        tensors = [(held, tuple(tensor.shape), str(tensor.dtype)) for held, tensor in own]
        rounds = str(getattr(part, "activations", None))
        found.append((name, type(part).__name__, part.extra_repr(), rounds, tensors))
    return found


def _measured(
    model: PreTrainedModel, alike: dict[str, list[int]], rest: str, ids: Tensor
) -> dict[str, float]:
    """Milliseconds of each kind's layers in a row, and of a pass without any, in turns.

    Lower quartiles: beside other work a median would be kept that no quiet machine has.
    """
    model = filled(model).to(ids.device)
    layers = _layers(model)
    run = partial(model, input_ids=ids, attention_mask=torch.ones_like(ids))
    seen: dict[nn.Module, tuple] = {}

    def kept(layer: nn.Module, given: tuple, named: dict, output: object) -> None:
        seen[layer] = given, named, output

    hooks = [layer.register_forward_hook(kept, with_kwargs=True) for layer in layers]
    with torch.inference_mode():
        run()
        for hook in hooks:
            hook.remove()
        runs: dict[str, Callable] = {
            name: partial(_in_a_row, [(layers[at].forward, *seen[layers[at]][:2]) for at in places])
            for name, places in alike.items()
        }
        runs[rest] = partial(_skipping, run, {layer: seen[layer][2] for layer in layers})
        times = in_turns(runs, latency.enough(runs, 0.4))
    return {name: found["low"] for name, found in times.items()}


def _in_a_row(calls: list[tuple[Callable, tuple, dict]]) -> None:
    for forward, given, named in calls:
        forward(*given, **named)


def _skipping(run: Callable, outputs: dict[nn.Module, object]) -> None:
    """A pass whose layers answer at once with what they gave before."""
    forwards = {layer: layer.forward for layer in outputs}
    for layer, output in outputs.items():
        layer.forward = partial(_answer, output)  # type: ignore[method-assign]
    try:
        run()
    finally:
        for layer, forward in forwards.items():
            layer.forward = forward  # type: ignore[method-assign]


def _answer(output: object, *given: object, **named: object) -> object:
    return output


def _is_empty(model: nn.Module) -> bool:
    return any(p.device.type == "meta" for p in model.parameters())


def filled(model: PreTrainedModel) -> PreTrainedModel:
    """A copy with numbers in it, if it is empty: small random ones; packed codes are zeros.

    Its attention is the one that its artefact would open with.
    """
    model = copy.deepcopy(model).eval()
    if not _is_empty(model):
        return model
    attention.leave(model, "eager")
    for module in model.modules():
        if isinstance(module, Stored):
            module.make_room_({})  # as many values as an empty mask has ones
    model = model.to_empty(device="cpu")
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for tensor in (*model.parameters(), *model.buffers()):
            if tensor.is_floating_point():
                tensor.normal_(0, 0.02, generator=generator)
            else:
                tensor.zero_()
    return model
