"""Explorers for notebooks: a figure with controls under it, readable before one is touched."""

from __future__ import annotations

import html
import importlib.util
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import ipywidgets as ui
import plotly.graph_objects as go
from torch import Tensor
from transformers import BertConfig, PretrainedConfig, PreTrainedModel

from xtclib.artefact.ledger import plan
from xtclib.bert import encoder_layers
from xtclib.costs.architectures import config_of
from xtclib.costs.breakdown import break_down, deformer
from xtclib.distillation.losses import layer_map
from xtclib.distillation.terms import LAYER_MAPS
from xtclib.figures import (
    costs,
    deployment,
    distillation,
    dynamic,
    factorization,
    pruning,
    quantization,
)
from xtclib.figures import deformer as apart
from xtclib.figures.style import plain
from xtclib.techniques.base import apply_all, technique
from xtclib.techniques.dynamic.calibration import Observed
from xtclib.techniques.factorization.decompositions import rank_for, svd
from xtclib.techniques.pruning.depth import LayerReduction
from xtclib.techniques.pruning.structured import PruneHeads
from xtclib.techniques.pruning.unstructured import Sparsify
from xtclib.techniques.quantization.mixed import Mixed
from xtclib.techniques.quantization.quantizers import Scheme, relative_error


def scheme(bits: int, granularity: str = "tensor", clip: float | None = None) -> Scheme:
    """Binary for 1 bit, ternary for 2, symmetric integers for 3 to 8.

    >>> str(scheme(1)), str(scheme(4, "row")), scheme(2, clip=2.5).clip
    ('binary-tensor', 'int4-row', 2.5)
    """
    name = {1: "binary", 2: "ternary"}.get(bits, f"int{bits}")
    return Scheme.parse({"scheme": f"{name}-{granularity}", "clip": clip})


def quantization_explorer(tensor: Tensor, bits: int = 2) -> ui.VBox:
    """A weight (rows, columns) under sliders for bits, granularity and clip.

    Clip is a share of the largest magnitude: at 100 % nothing is cut, below it everything larger
    is, before the scale is chosen. The figure is a ``FigureWidget`` where ``anywidget`` is
    installed; elsewhere it is drawn anew. ``.children`` are figure, controls and a sentence.

    >>> import torch
    >>> explorer = quantization_explorer(torch.eye(4) - 0.5)
    >>> explorer.children[-1].value
    '<b>ternary-tensor</b>: relative error 0 %, 2 bits a weight'
    """
    tensor = tensor.detach().float().cpu()
    largest = float(tensor.abs().max())
    slider = ui.IntSlider(bits, min=1, max=8, description="bits")
    groups = ui.Dropdown(options=["tensor", "row"], description="one scale a")
    cut = ui.IntSlider(100, min=10, max=100, step=5, description="clip, % of max")
    sentence = ui.HTML()

    def make() -> go.Figure:
        clip = None if cut.value == 100 else largest * cut.value / 100
        chosen = scheme(slider.value, groups.value, clip)
        error = 100 * relative_error(tensor, chosen)
        sentence.value = (
            f"<b>{html.escape(str(chosen))}</b>: relative error {error:.3g} %, {slider.value} bit"
            f"{'s' * (slider.value > 1)} a weight"
        )
        return quantization.quantization_curve(tensor, chosen)

    return _explorer(make, [slider, groups, cut], sentence)


def breakdown_explorer(
    length: int = 128, batch: int = 1, layers: int = 12, width: int = 768, vocabulary: int = 30522
) -> ui.VBox:
    """Where a BERT's costs are, under sliders for length, batch, depth, width and vocabulary.

    ``.children`` are the figure, the controls and a sentence.

    >>> breakdown_explorer(16, layers=1, width=64).children[-1].value
    '<b>2.0 M parameters, 0.00165 GFLOPs</b>; a head is 64 wide, feed-forward 4 × the width'
    """
    sliders = {
        "length": ui.SelectionSlider(options=[2**i for i in range(4, 13)], value=length),
        "batch": ui.SelectionSlider(options=[2**i for i in range(6)], value=batch),
        "layers": ui.IntSlider(layers, min=1, max=24),
        "width": ui.SelectionSlider(options=[64, 128, 256, 384, 512, 768, 1024], value=width),
        "vocabulary": ui.SelectionSlider(
            options=sorted({1000, 4928, 10000, 30522, 119547, vocabulary}), value=vocabulary
        ),
    }
    for name, control in sliders.items():
        control.description = name
    sentence = ui.HTML()

    def make() -> go.Figure:
        length, batch, layers, width, vocabulary = (c.value for c in sliders.values())
        config = BertConfig(
            vocab_size=vocabulary, hidden_size=width, num_hidden_layers=layers,
            num_attention_heads=max(width // 64, 1), intermediate_size=4 * width,
        )  # fmt: skip
        found = break_down(config, batch, length, extend=True)
        sentence.value = (
            f"<b>{found.parameters / 1e6:.1f} M parameters, {plain(found.flops() / 1e9)} GFLOPs"
            "</b>; a head is 64 wide, feed-forward 4 × the width"
        )
        return costs.shares(replace(found, model="this BERT"))

    return _explorer(make, list(sliders.values()), sentence)


def rank_explorer(weight: Tensor, share: float = 0.5) -> ui.VBox:
    """The singular values of a matrix (rows, columns), under a slider for the share that stays.

    >>> import torch
    >>> rank_explorer(torch.eye(8)).children[-1].value
    '<b>rank 2 of 8</b>: 50 % of the values, 25.0 % of Σ σ²'
    """
    one, shape = svd(weight.detach().float().cpu()), tuple(weight.shape)
    slider = ui.IntSlider(round(100 * share), min=5, max=100, step=5, description="values, %")
    sentence = ui.HTML()

    def make() -> go.Figure:
        rank = rank_for(slider.value / 100, *shape)
        kept = 100 * float(1 - one.tail()[rank] / one.tail()[0])
        held = 100 * rank * sum(shape) / (shape[0] * shape[1])
        sentence.value = (
            f"<b>rank {rank} of {len(one.values)}</b>: {held:.0f} % of the values, "
            f"{kept:.1f} % of Σ σ²"
        )
        return factorization.values(one, rank)

    return _explorer(make, [slider], sentence)


def split_explorer(
    source: str | PretrainedConfig = "bert-base", length: int = 320, question: int = 32,
    layers: int = 9,
) -> ui.VBox:  # fmt: skip
    """DeFormer's work and its cache, under a slider for how many layers read the texts apart.

    ``length`` tokens in all, ``question`` of them the question's, the rest was read before.

    >>> tiny = BertConfig(num_hidden_layers=2, hidden_size=8, num_attention_heads=2)
    >>> split_explorer(tiny, 32, 8, 1).children[-1].value
    '<b>1 of 2 layers apart</b>: 62 % of the operations, 0.384 kB a passage in fp16'
    """
    whole = break_down(source, 1, length)
    depth = 1 + max(part.layer for part in whole.parts if part.layer is not None)
    shares = [deformer(source, length, question, n).flops() / whole.flops() for n in range(depth)]
    width = config_of(source).hidden_size if isinstance(source, str) else source.hidden_size
    slider = ui.IntSlider(layers, min=0, max=depth - 1, description="layers apart")
    sentence = ui.HTML()

    def make() -> go.Figure:
        size = 2 * width * (length - question) / 1e3 if slider.value else 0
        sentence.value = (
            f"<b>{slider.value} of {depth} layers apart</b>: {100 * shares[slider.value]:.0f} % of "
            f"the operations, {plain(size)} kB a passage in fp16"
        )
        return apart.operations(shares, slider.value)

    return _explorer(make, [slider], sentence)


_WEIGHTS = {  # scheme, and the width of ternary weights
    "1 bit": ("binary", 2),
    "ternary, 1.6 bits": ("ternary", 1.6),
    "ternary, 2 bits": ("ternary", 2),
    "4 bits": ("int4", 2),
    "8 bits": ("int8", 2),
}


def size_explorer(config: PretrainedConfig, layers: int | None = None) -> ui.VBox:
    """The file of a model of this config, before it exists, under a control for each choice.

    ``.children`` are the byte ledger as nested areas, the controls and a sentence; MB are 10⁶
    bytes, fp32 is counted at 4 bytes a parameter.

    >>> size_explorer(BertConfig(), layers=6).children[-1].value
    '<b>9.45 MB, 46 × smaller than fp32</b>, 0.4 % above the minimum of its widths'
    """
    depth, positions = config.num_hidden_layers, config.max_position_embeddings
    rest = {"8 bits": "int8-row", "1 bit": "binary-row", "fp16": None}
    shorter = [n for n in (64, 128, 256) if n < positions]
    controls = {
        "layers": ui.IntSlider(layers or depth, min=1, max=depth),
        "weights": ui.Dropdown(options=list(_WEIGHTS)),
        "pooler": ui.Dropdown(options=list(rest)),
        "positions": ui.Dropdown(options=list(rest)),
        "length": ui.SelectionSlider(options=[*shorter, positions], value=positions),
    }
    for name, control in controls.items():
        control.description = name
    sentence = ui.HTML()
    full = 4 * break_down(config).parameters

    def make() -> go.Figure:
        layers, weights, pooler, table, length = (c.value for c in controls.values())
        scheme_, width = _WEIGHTS[weights]
        techniques = [
            technique({"quantize": {"weights": scheme_, "embeddings": f"{scheme_}-row"}}),
            technique(
                {
                    "storage": {
                        "pooler": rest[pooler],
                        "positions": rest[table],
                        "length": length,
                        "ternary": width,
                    }
                }
            ),
        ]
        if layers < depth:
            techniques.insert(0, LayerReduction(layers=layers))
        entries = plan(config, techniques)
        size, least = sum(e.bytes for e in entries), sum(e.minimum for e in entries)
        smaller = f"{size / 1e6:.2f} MB, {full / size:.0f} × smaller than fp32"
        above = 100 * (size / least - 1)
        sentence.value = f"<b>{smaller}</b>, {above:.1f} % above the minimum of its widths"
        return deployment.ledger(entries, smaller)

    return _explorer(make, list(controls.values()), sentence)


def pruning_explorer(
    model: PreTrainedModel, score: Callable[[PreTrainedModel], float], sparsity: int = 50
) -> ui.VBox:
    """What is left of a model under sliders for zeros and heads, before any training.

    ``score`` says how good a model is. The figure is the first intermediate matrix's mask; the
    sentence under it the score, and the bytes that the file will have. ``.children`` are the
    figure, the controls and the sentence.
    """
    heads = model.config.num_attention_heads
    zeros = ui.IntSlider(sparsity, min=0, max=95, step=5, description="zeros, %")
    kept = ui.IntSlider(heads, min=1, max=heads, description="heads a layer")
    criterion = ui.Dropdown(options=["magnitude", "random"], description="criterion")
    sentence = ui.HTML()

    def make() -> go.Figure:
        techniques = [
            PruneHeads(kept.value / heads, criterion.value),
            Sparsify(zeros.value / 100, criterion.value),
        ]
        small = apply_all(model, techniques)
        size = sum(e.bytes for e in plan(model.config, techniques))
        full = sum(4 * p.numel() for p in model.parameters())
        sentence.value = (
            f"<b>score {score(small.eval()):.1f}</b>, {size / 1e6:.2f} MB, "
            f"{full / size:.1f} × smaller than fp32; nothing was trained"
        )
        return pruning.mask(encoder_layers(small)[0].intermediate.dense.mask)

    return _explorer(make, [zeros, kept, criterion], sentence)


def distillation_explorer(logits: Tensor, student: int = 6, teacher: int = 12) -> ui.VBox:
    """A row of a teacher's logits (classes,) under a slider for temperature, and the layer map.

    The figure shows the teacher's probabilities, at T = 1 and at the slider's; below, the map of a
    student of that many layers. ``.children`` are both figures, the controls and a sentence.
    """
    logits = logits.detach().float().cpu()
    heat = ui.FloatLogSlider(2, min=-0.5, max=2, step=0.1, base=10, description="temperature")
    depth = ui.IntSlider(student, min=1, max=teacher, description="layers")
    kind = ui.Dropdown(options=list(LAYER_MAPS), description="layer map")
    heat.value = 2
    sentence = ui.HTML()

    def soft() -> go.Figure:
        return distillation.temperature(logits, (1, round(heat.value, 2)))

    def mapping() -> go.Figure:
        kept = LayerReduction(layers=depth.value).indices(teacher)
        layers = layer_map(depth.value, teacher, kind.value, kept)
        taught = f"the last of {teacher} layers teaches" + " nobody" * (layers[-1] != teacher)
        sentence.value = f"<b>{kind.value}</b>: {layers}; {taught}"
        return distillation.layer_map(depth.value, teacher, layers)

    above, below = _view(soft, [heat]), _explorer(mapping, [depth, kind], sentence)
    return ui.VBox([above, heat, *below.children])


def exit_explorer(observed: Observed, speed: float = 2.0) -> ui.VBox:
    """After which layer rows leave, under a slider from never to always.

    The slider goes through the thresholds that tell these rows apart; it begins where the wanted
    speed is nearest. ``.children`` are the figure, the control and a sentence.
    """
    curve = observed.curve()[::-1]
    start = min(range(len(curve)), key=lambda i: abs(curve[i].speed - speed))
    slider = ui.IntSlider(start, min=0, max=len(curve) - 1, description="leave sooner")
    sentence = ui.HTML()

    def make() -> go.Figure:
        point = curve[slider.value]
        sentence.value = (
            f"<b>{observed.criterion} {point.threshold}</b>: {point.depth:.2f} layers in the mean, "
            f"{point.speed:.2f} times fewer operations, score {point.score:.1f}"
        )
        return dynamic.leaving(observed, point.threshold)

    return _explorer(make, [slider], sentence)


def mixture_explorer(
    mixed: Mixed, shapes: Mapping[str, Sequence[int]], losses: Sequence[Sequence[float]]
) -> ui.VBox:
    """Which matrix gets how many bits, under a slider of the mean: chosen exactly at every stop.

    ``shapes`` and ``losses`` as :meth:`.mixed.Mixed.chosen` takes them. ``.children`` are the
    figure, the control and a sentence.
    """
    bits = [scheme.bits for scheme in mixed.choices]
    slider = ui.FloatSlider(
        mixed.bits, min=min(bits), max=max(bits), step=0.1, description="bits a weight"
    )
    sentence = ui.HTML()

    def make() -> go.Figure:
        found = replace(mixed, bits=slider.value).chosen(shapes, losses)
        options = zip(found.values(), losses, strict=True)
        lost = sum(each[mixed.choices.index(scheme)] for scheme, each in options)
        sentence.value = f"<b>{slider.value:.1f} bits</b>: a loss of {lost:.3g} is foreseen"
        return quantization.mixture({name: str(scheme) for name, scheme in found.items()})

    return _explorer(make, [slider], sentence)


def _explorer(make: Callable[[], go.Figure], controls: list, sentence: ui.HTML) -> ui.VBox:
    """A figure, its controls, and the sentence that ``make`` writes."""
    return ui.VBox([_view(make, controls), ui.VBox(controls), sentence])


def _view(make: Callable[[], go.Figure], controls: list) -> ui.DOMWidget:
    """``make()``, drawn anew with every control: in place where ``anywidget`` is installed."""
    if importlib.util.find_spec("anywidget"):
        view = go.FigureWidget(make())

        def redraw(*_) -> None:
            new = make()
            view.data = ()
            view.add_traces(new.data)
            view.update_layout(new.layout, overwrite=True)

    else:
        view = ui.Output()

        def redraw(*_) -> None:
            view.outputs = ()
            view.append_display_data(make())

        redraw()
    for control in controls:
        control.continuous_update = False
        control.style.description_width = "7em"
        control.observe(redraw, "value")
    return view
