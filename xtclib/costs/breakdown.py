"""Where a model's parameters, bytes, operations and activations are, by component and by layer.

Everything here follows from the structure: the model is run on PyTorch's meta device, where
tensors have shapes and no data, and every module that runs is priced by the formula of its kind.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode
from transformers import PretrainedConfig
from transformers.pytorch_utils import Conv1D

from xtclib import cache
from xtclib.costs.architectures import OWN, build, config_of
from xtclib.costs.parts import COMPONENTS, EMBEDDINGS, Breakdown, Part
from xtclib.techniques.base import Stored, Technique, held, technique
from xtclib.techniques.pruning.surgery import saved_widths

# The models of `transformers` whose parts the names below tell.
FAMILIES = (
    "albert", "bert", "camembert", "distilbert", "electra", "mobilebert", "mpnet", "openai-gpt",
    "roberta", "squeezebert", "xlm-roberta", "xtc-bilstm", "xtc-cnn",
)  # fmt: skip

# The first pattern that a module's name matches says which component it is.
_RULES = tuple(
    (re.compile(pattern), component)
    for pattern, component in (
        (r"(^|[._])layer_?norm$|LayerNorm$|\.ln_\d$", "norm and residual"),
        (r"positions?_embed|relative_attention_bias$", "position embeddings"),
        (r"token_type_embed", "type embeddings"),
        (r"word_embeddings|tokens_embed$|^embedding$|^characters$", "word embeddings"),
        (r"embeddings_project$|embedding_transformation$|embedding_hidden_mapping_in$"
         r"|^projection$", "embedding projection"),
        (r"\bbottleneck\b", "bottleneck"),
        (r"^(filters|highways)\b", "convolution"),
        (r"^(lstm|forwards|backwards)\b", "recurrent"),
        (r"\bpooler", "pooler"),
        (r"^(classifier|pre_classifier|score|dense)\b", "head"),
        (r"\b(query|key|value|[qkv]_lin|c_attn)$|attn\.[qkv]$", "query, key, value"),
        (r"attention\.(output\.dense|out_lin|dense)$|attn\.(c_proj|o)$|post_attention\.conv1d$",
         "attention output"),
        # What these blocks do beside their own parts is to add the residual.
        (r"(attention|\d)\.output$|post_attention$|\b(layers?|h|albert_layers)\.\d+$"
         r"|embeddings$", "norm and residual"),
        (r"\b(attention|attn)(\.|$)", "attention"),
        (r"\b(intermediate|ffn|ffn_output|mlp|output)\b|\bactivation$", "feed-forward"),
    )
)  # fmt: skip
# ALBERT's shared layer has another name: it is told by how often it was called.
_LAYER = re.compile(r"\b(?:layers?|h|forwards|backwards)\.(\d+)(?:\.|$)")
_FACTOR = re.compile(r"\.(down|up|table)$")  # of a matrix or table, as which it counts
_ATTENTION = re.compile(r"(^|\.)(attention\.self|attention|attn)$")


def component_of(name: str) -> str:
    """The component that a module belongs to, by its name in the model.

    >>> component_of("bert.encoder.layer.3.attention.self.query")
    'query, key, value'
    """
    name = _FACTOR.sub("", name)
    return next((found for pattern, found in _RULES if pattern.search(name)), "other")


def layer_of(name: str, calls: int = 0) -> int | None:
    """The layer that a module belongs to, by its name, or for a shared one by its earlier calls.

    >>> layer_of("bert.encoder.layer.3.output"), layer_of("bert.pooler")
    (3, None)
    """
    found = _LAYER.search(name)
    return int(found[1]) if found else calls if "albert_layers" in name else None


def break_down(
    source: str | Path | PretrainedConfig | nn.Module,
    batch: int = 1,
    length: int = 128,
    extend: bool = False,
) -> Breakdown:
    """Prices every part of a model at a batch and length, without weights or data.

    ``source``: a name of :mod:`xtclib.costs.architectures`, a folder, a Hub id, or a config. With
    ``extend`` a length past the model's positions gets the positions it needs.

    With b sequences of n tokens, width h and a feed-forward f wide, one BERT layer costs
    b·n·(4h² + 2hf) multiply–adds with weights and 2·b·n²·h of activations with each other.

    Raises ``ValueError`` for a batch or length below 1, a length past the model's positions, an
    unknown name or structure.

    >>> found = break_down("bert-base", length=128)
    >>> found.parameters, round(found.flops() / 1e9, 2)
    (109483778, 22.35)
    """
    model = fitting(source, batch, length, extend)
    label = source if isinstance(source, (str, Path)) else type(model).__name__
    return Breakdown(str(label), batch, length, _price(model, batch, length))


def fitting(source, batch: int, length: int, extend: bool = False) -> nn.Module:
    """The model of a source, checked to take such a batch; errors as of :func:`break_down`."""
    for name, value in (("batch", batch), ("length", length)):
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise ValueError(f"{name} must be a whole number of at least 1, received {value!r}")
    model = known(source)
    limit = positions(model)
    if limit is None or length <= limit:
        return model
    if not extend:
        raise ValueError(
            f"a length of {length} is past the model's {limit} positions: shorten it, or pass "
            "extend=True (--extend) to have as many positions as that takes"
        )
    config = type(model.config).from_dict(model.config.to_dict())
    table = getattr(config, _positions_name(config))
    setattr(config, _positions_name(config), length + table - limit)
    return build(config)


def known(source: str | Path | PretrainedConfig | nn.Module) -> nn.Module:
    """:func:`architectures.build`, refused with ``ValueError`` if its parts have no names here."""
    found = config_of(source) if isinstance(source, (str, Path)) else source
    config = found if isinstance(found, PretrainedConfig) else getattr(found, "config", None)
    kind = getattr(config, "model_type", "none")
    if kind not in FAMILIES and not isinstance(found, OWN):
        raise ValueError(
            f"the structure of {type(found).__name__} (model_type {kind!r}) is not known here; "
            f"known are {', '.join(FAMILIES)}"
        )
    return _built(found)


def _built(source: str | Path | PretrainedConfig | nn.Module) -> nn.Module:
    """:func:`architectures.build`, with the layers that its techniques have it run."""
    found = config_of(source) if isinstance(source, (str, Path)) else source
    model = build(found)
    for item in held(found) if isinstance(found, PretrainedConfig) else ():
        technique(item).outline(model)
    return model


def _positions_name(config: PretrainedConfig) -> str:
    return "n_positions" if hasattr(config, "n_positions") else "max_position_embeddings"


def positions(model: nn.Module) -> int | None:
    """The longest input that a model takes; ``None`` if it has no positions."""
    config: Any = getattr(model, "config", None)
    limit = getattr(config, _positions_name(config), None)
    # RoBERTa's and MPNet's positions start after the padding index.
    late = limit and ("roberta" in config.model_type or config.model_type == "mpnet")
    offset = config.pad_token_id + 1 if late else 0
    return limit and limit - offset


def run_on(model: nn.Module, ids: Tensor) -> None:
    """One forward pass of a classifier, without the padding rules that would read data."""
    if not hasattr(model, "config"):
        model(ids)
        return
    pad, model.config.pad_token_id = model.config.pad_token_id, None
    try:
        if hasattr(model, "score"):  # a decoder: its classifier looks for the last token
            model.score(model.base_model(input_ids=ids).last_hidden_state)
        elif model.config.model_type == "squeezebert":  # it would look into a mask of its own
            model(input_ids=ids, attention_mask=torch.zeros(len(ids), 1, 1, ids.shape[1]))
        else:
            model(input_ids=ids)
    finally:
        model.config.pad_token_id = pad


def _price(model: nn.Module, batch: int, length: int) -> tuple[Part, ...]:
    parts: dict[tuple[str, int | None], Counter] = defaultdict(Counter)
    calls: Counter = Counter()
    seen: set[int] = set()
    projected: dict[int | None, list[Tensor]] = {}
    turn: list[int | None] = []  # the layer that runs the parts of another

    def hook(name: str) -> Callable:
        component = component_of(name)

        def priced(module: nn.Module, inputs: tuple, output) -> None:
            if hasattr(module, "leader"):
                turn.clear()
            layer = turn[0] if turn else layer_of(name, calls[name])
            calls[name] += 1
            new = [p for p in module.parameters(recurse=False) if id(p) not in seen]
            seen.update(map(id, new))
            out = output[0] if isinstance(output, tuple) else output
            numbers = out.numel() if isinstance(out, Tensor) else 0
            part = parts[component, layer]
            part["parameters"] += sum(p.numel() for p in new)
            if component == "query, key, value" and not _FACTOR.search(name):
                projected.setdefault(layer, []).append(out)
            if _ATTENTION.search(name) and layer in projected:
                parts["attention", layer].update(_attention(model.config, projected.pop(layer)))
            if not list(getattr(module, "leader", module).children()):
                part.update(_leaf(module, inputs, numbers))
            else:
                added = _additions(name, module) * numbers
                parts["norm and residual", layer]["elementwise"] += added

        return priced

    hooks = [m.register_forward_hook(hook(name)) for name, m in model.named_modules() if name]
    for name, module in model.named_modules():
        if hasattr(module, "leader"):
            begin = partial(lambda layer, *_: turn.append(layer), layer_of(name))
            hooks.append(module.register_forward_pre_hook(begin))
    was_training = model.training
    model.eval()
    try:
        with torch.no_grad(), torch.device("meta"):
            run_on(model, torch.zeros(batch, length, dtype=torch.long))
    finally:
        model.train(was_training)
        for handle in hooks:
            handle.remove()
    for name, parameter in model.named_parameters():
        if id(parameter) not in seen:  # of a module that this pass does not use
            parts[component_of(name.rpartition(".")[0]), None]["parameters"] += parameter.numel()
    return tuple(Part(*key, **dict(parts[key])) for key in sorted(parts, key=_order))


def _order(key: tuple[str, int | None]) -> tuple:
    place = COMPONENTS.index(key[0])
    in_layer = key[1] is not None
    after = place > COMPONENTS.index("norm and residual")
    return (1 if in_layer else 2 if after else 0, key[1] or 0, place)


def _attention(config: PretrainedConfig, projected: list[Tensor]) -> dict[str, int]:
    """Scores, softmax, context, from the outputs of query, key and value.

    Both products take b·n²·h multiply–adds; softmax 5 operations a score and scaling one.
    """
    if len(projected) == 1:  # GPT's three in one
        width = projected[0].shape[-1] // 3
        shapes = [(*projected[0].shape[:-1], width)] * 3
    elif config.model_type == "squeezebert":  # channels first
        shapes = [(q.shape[0], q.shape[2], q.shape[1]) for q in projected]
    else:
        shapes = [tuple(q.shape) for q in projected]
    (batch, queries, width), (_, keys, _), (_, _, values) = shapes
    scores = batch * config.num_attention_heads * queries * keys
    return {
        "products": batch * queries * keys * (width + values),
        "elementwise": 6 * scores,
        "activations": 2 * scores + batch * queries * values,
    }


def _additions(name: str, module: nn.Module) -> int:
    """How many tensors a block adds up beside what its own parts do: residuals, embeddings."""
    if name.endswith("embeddings"):
        return sum(isinstance(part, nn.Embedding) for part in module.children()) - 1
    if name.endswith(".attention"):
        return int(hasattr(module, "LayerNorm"))  # ALBERT's adds its own
    if re.search(r"(layers?|h)\.\d+$", name):
        if hasattr(module, "output"):
            return 0  # BERT adds them in the blocks called output
        return 1 if "albert" in name else 2
    adds = re.search(r"(attention|\d)\.output$|output\.bottleneck$|post_attention$", name)
    return int(adds is not None)


# Operations an element, as ELECTRA's flops_computation.py counts them.
_NORM, _ACTIVATION = 5, 8


def _leaf(module: nn.Module, inputs: tuple, numbers: int) -> dict[str, int]:
    """What one module costs that has no parts of its own; ``numbers`` it writes."""
    kind = type(module).__name__
    if any(word in kind for word in ("Dropout", "MatMul", "Softmax")):
        return {}  # nothing at inference, or priced with the attention that it is part of
    if hasattr(module, "macs"):  # it knows its own products
        return {"macs": module.macs(numbers), "activations": numbers}
    if isinstance(module, nn.Linear):
        macs = numbers * module.in_features
    elif isinstance(module, Conv1D):
        macs = numbers * module.weight.shape[0]
    elif isinstance(module, nn.Conv1d):
        macs = numbers * (module.in_channels // module.groups) * module.kernel_size[0]
    elif isinstance(module, nn.Embedding):
        return {"lookups": numbers * module.num_embeddings, "activations": numbers}
    elif isinstance(module, nn.LSTM):
        tokens = inputs[0].numel() // inputs[0].shape[-1]
        weights = sum(p.numel() for n, p in module.named_parameters() if n.startswith("weight"))
        gates = 4 * module.hidden_size * tokens * (1 + module.bidirectional)
        states = (module.proj_size or module.hidden_size) * tokens * (1 + module.bidirectional)
        elementwise, activations = _ACTIVATION * gates, gates + states
        return {"macs": tokens * weights, "elementwise": elementwise, "activations": activations}
    else:
        each = _NORM if "Norm" in kind else _ACTIVATION
        return {"elementwise": each * numbers, "activations": numbers}
    bias = numbers if module.bias is not None else 0
    return {"macs": macs, "elementwise": bias, "activations": numbers}


def deformer(
    source: str | PretrainedConfig, length: int, question: int, lower: int, cached: bool = True
) -> Breakdown:
    """DeFormer: the lower layers see question and passage apart, the rest together.

    ``lower`` layers run on ``question`` tokens and on the passage's ``length − question``; with
    ``cached`` the passage's part was computed before. The other layers run on all of them.
    Cao et al. 2020, arXiv:2005.00697: 9 of BERT-base's layers are lower ones.

    Raises ``ValueError`` for a question as long as the whole, or a split past the model.

    >>> whole = break_down("bert-base", 1, 320).flops()
    >>> round(deformer("bert-base", 320, 32, 9).flops() / whole, 2)
    0.32
    """
    if not 1 <= question < length:
        raise ValueError(f"the question must have 1 to {length - 1} tokens, received {question}")
    whole = break_down(source, 1, length)
    depth = 1 + max((p.layer for p in whole.parts if p.layer is not None), default=-1)
    if not depth:
        raise ValueError(f"{whole.model} has no layers to split")
    if not 0 <= lower <= depth:
        raise ValueError(f"the model has {depth} layers: the split must be 0 to {depth}")

    def is_lower(part: Part) -> bool:
        return part.layer < lower if part.layer is not None else part.component in EMBEDDINGS

    parts = [p for p in whole.parts if not is_lower(p)]
    apart = [question] if cached else [question, length - question]
    for turn, tokens in enumerate(apart):
        found = filter(is_lower, break_down(source, 1, tokens).parts)
        parts += [replace(p, parameters=0) if turn else p for p in found]
    return Breakdown(f"{whole.model}, {lower} + {depth - lower}", 1, length, tuple(parts))


def parameters(model: nn.Module) -> int:
    """Weights and biases of a model, packed ones counted as the weights that they stand for."""
    entries = [m.entries() for m in model.modules() if isinstance(m, Stored)]
    packed = sum(each["weight"].values for each in entries if "weight" in each)
    return packed + sum(p.numel() for p in model.parameters())


def flops(source: str | PretrainedConfig | nn.Module, batch: int = 1, length: int = 128) -> int:
    """Operations of one forward pass's matrix products as PyTorch counts them, multiply–add as 2.

    The check of :func:`break_down` that knows none of its formulas, and takes any classifier. A
    config is counted once: runs that differ in their weights alone share its answer.
    """
    found = config_of(source) if isinstance(source, (str, Path)) else source
    if not isinstance(found, PretrainedConfig):
        return _counted(found, batch, length)
    values = {n: v for n, v in found.to_dict().items() if n not in _SAYS_NOTHING}
    shaped = [item for item in held(found) if type(technique(item)).outline != Technique.outline]
    name = cache.key(type(found).__name__, values, saved_widths(found), shaped, batch, length)
    if name not in _COUNTS:
        _COUNTS[name] = _counted(found, batch, length)
    return _COUNTS[name]


_COUNTS: dict[str, int] = {}
# Of weights and where they come from; what a model is built of stands elsewhere in its config.
_SAYS_NOTHING = {"quantization_config", "trained_on", "_name_or_path"}


def _counted(source: PretrainedConfig | nn.Module, batch: int, length: int) -> int:
    model = _built(source)
    with FlopCounterMode(display=False) as counter, torch.no_grad(), torch.device("meta"):
        run_on(model, torch.zeros(batch, length, dtype=torch.long))
    return int(counter.get_total_flops())


def by_length(
    source: str | PretrainedConfig, lengths: Iterable[int], batch: int = 1
) -> list[Breakdown]:
    """Breakdowns over lengths, past the model's own positions if need be."""
    return [break_down(source, batch, length, extend=True) for length in lengths]
