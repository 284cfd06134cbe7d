"""The artefact: a folder with packed weights that ``from_pretrained`` opens.

``config.json`` carries ``quantization_config`` with ``quant_method: "xtc"`` and the techniques, so
that the structure is rebuilt before the weights load. ``model.safetensors`` holds packed bytes
under the weights' own names, and a sha256 for each tensor in its metadata. A program that never
imported ``xtclib`` finds bytes of another shape where it expects a weight, and stops.
"""

from __future__ import annotations

import copy
import hashlib
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.quantizers import HfQuantizer, register_quantization_config, register_quantizer
from transformers.utils.quantization_config import QuantizationConfigMixin

from xtclib import attention, shallow, structure  # noqa: F401 - registers its models
from xtclib.files import staged_folder
from xtclib.layers import PackedLinear, QuantEmbedding, QuantLinear, _Packed, linear_of
from xtclib.masked import MaskedLinear, SparseLinear
from xtclib.models import pack_, replace_module_
from xtclib.quantizers import Scheme
from xtclib.sparsify import Sparsify
from xtclib.splitting import SplitTernary
from xtclib.techniques import (
    Quantize,
    Storage,
    Technique,
    finalize_all,
    technique,
)

# 2 knows `storage`, 3 `layers`, 4 `sparsify` and `head_size`, 5 `split_ternary` and learned
# activations; else 1 is written.
FORMAT = 5
WEIGHTS = "model.safetensors"


@register_quantization_config("xtc")
class XtcConfig(QuantizationConfigMixin):
    """What ``config.json`` says of an artefact: its techniques and the format's version.

    ``layers``: heads and neurons of every layer, where some were removed.
    """

    def __init__(
        self,
        techniques: Sequence[dict] = (),
        format: int = 1,
        layers: Sequence[dict[str, int]] | None = None,
        **kwargs,
    ) -> None:
        self.quant_method = "xtc"
        self.techniques = list(techniques)
        self.format = format
        if layers is not None:
            self.layers = list(layers)
        if format > FORMAT:
            raise ValueError(
                f"this artefact has format {format}; this xtclib reads up to {FORMAT}: update it"
            )


@register_quantizer("xtc")
class XtcQuantizer(HfQuantizer):
    """Loads and saves packed models inside ``from_pretrained`` and ``save_pretrained``."""

    requires_calibration = True

    @property
    def is_trainable(self) -> bool:
        return False

    def is_serializable(self) -> bool:
        return True

    def update_dtype(self, dtype: torch.dtype) -> torch.dtype:
        """fp32 whatever was asked for: scales and tables are fp32; autocast gives bf16 products."""
        return torch.float32

    def _process_model_before_weight_loading(self, model, checkpoint_files=(), **kwargs) -> None:
        path = Path((checkpoint_files or [""])[0])
        shapes = check_file(path)
        _check_config(model, path)
        if structure.saved_widths(model.config):
            structure.resize_(model, structure.saved_widths(model.config))
        for config in self.quantization_config.techniques:
            technique(config).rebuild(model)
        _make_room(model, shapes)
        _check_tensors(model, shapes, path)

    def _process_model_after_weight_loading(self, model, **kwargs):
        return model

    def get_state_dict_and_metadata(self, model):
        """Floats as fp16, bytes as they are, a sha256 for each, and what the config must say."""
        tensors = {
            name: (t.detach().half() if t.is_floating_point() else t.detach()).cpu().contiguous()
            for name, t in model.state_dict().items()
        }
        sums = {name: digest(t) for name, t in tensors.items()}
        return tensors, {"xtc": json.dumps(sums), "xtc_config": json.dumps(_numeric(model.config))}


def digest(tensor: Tensor) -> str:
    """sha256 of a tensor's bytes, type and shape.

    >>> digest(torch.zeros(2)) == digest(torch.zeros(1, 2))
    False
    """
    head = f"{tensor.dtype}{tuple(tensor.shape)}".encode()
    return hashlib.sha256(
        head + tensor.contiguous().flatten().view(torch.uint8).numpy().tobytes()
    ).hexdigest()


# What of a config decides the numbers, over BERT's relatives; a model may lack some.
_NUMERIC = (
    "model_type hidden_size num_hidden_layers num_attention_heads intermediate_size hidden_act "
    "layer_norm_eps vocab_size max_position_embeddings type_vocab_size embedding_size "
    "pad_token_id is_decoder add_cross_attention"
).split()


def _numeric(config) -> dict:
    found = {name: getattr(config, name) for name in _NUMERIC if hasattr(config, name)}
    return {**found, "techniques": config.quantization_config.techniques}


def check_file(path: Path) -> dict[str, tuple[int, ...]]:
    """Shapes of the tensors in an artefact's file, after checking every one.

    Raises ``ValueError`` for a missing, truncated, foreign or altered file, and for NaN in it.
    """
    if not path.is_file():
        raise ValueError(f"no {WEIGHTS} at {path.parent}: the artefact's folder is incomplete")
    shapes = {}
    try:
        with safe_open(path, "pt") as file:
            sums = _metadata(file, "xtc")
            if sums is None:
                raise ValueError(
                    f"{path.name} in {path.parent.name} carries no checksums of an xtc artefact: "
                    "it was written by another program; load it with its own, or pack it again"
                )
            names = set(file.keys())
            for name in sorted(names | set(sums)):
                if name not in names or name not in sums:
                    raise ValueError(
                        f"{path.name}: tensor {name!r} is {'missing' if name in sums else 'extra'};"
                        " the file was altered, copy the artefact again"
                    )
                tensor = file.get_tensor(name)
                if digest(tensor) != sums[name]:
                    raise ValueError(
                        f"{path.name}: tensor {name!r} does not match its sha256; the file was "
                        "altered or damaged, copy the artefact again"
                    )
                if tensor.is_floating_point() and not bool(tensor.isfinite().all()):
                    raise ValueError(
                        f"{path.name}: tensor {name!r} holds NaN or infinite values; the model "
                        "was damaged before it was saved, pack it again"
                    )
                shapes[name] = tuple(tensor.shape)
    except SafetensorError as error:
        raise ValueError(
            f"{path.name} in {path.parent.name} cannot be read ({error}); the file is truncated or "
            "no safetensors file, copy the artefact again"
        ) from None
    return shapes


def _metadata(file, key: str) -> dict | None:
    """One JSON object of a file's metadata; ``None`` if it is absent or no object."""
    try:
        found = json.loads((file.metadata() or {}).get(key, "null"))
    except json.JSONDecodeError:
        return None
    return found if isinstance(found, dict) else None


def _check_config(model: PreTrainedModel, path: Path) -> None:
    """``config.json`` must say of the computation what it said when the weights were written."""
    with safe_open(path, "pt") as file:
        written = _metadata(file, "xtc_config") or {}
    here = json.loads(json.dumps(_numeric(model.config)))
    for name, value in written.items():
        if name in here and here[name] != value:
            raise ValueError(
                f"config.json says {name}={here[name]!r}, but {path.name} was written with "
                f"{value!r}: one of them was altered, copy the artefact again"
            )


def _make_room(model: PreTrainedModel, shapes: dict) -> None:
    """How many values a sparse matrix keeps is in the file alone."""
    for name, module in model.named_modules():
        if isinstance(module, SparseLinear):
            known = f"{name}.weight_values", f"{model.base_model_prefix}.{name}.weight_values"
            shape = next((shapes[key] for key in known if key in shapes), (0,))
            module.set_count_(min(shape[0], module.rows * module.columns))


def _check_tensors(model: PreTrainedModel, shapes: dict, path: Path) -> None:
    """Missing and unexpected tensors are errors: nothing may be initialised at random."""
    wanted = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    base = model.base_model_prefix + "."
    if model.base_model is model:  # AutoModel: the same tensors without head and prefix
        shapes = {k.removeprefix(base): v for k, v in shapes.items() if k.startswith(base)}
    missing, unexpected = sorted(wanted.keys() - shapes), sorted(shapes.keys() - wanted)
    if missing or unexpected:
        raise ValueError(
            f"{path.name} does not fit {type(model).__name__}: missing {missing[:3] or 'nothing'}, "
            f"unexpected {unexpected[:3] or 'nothing'} ({len(missing)} and {len(unexpected)} in "
            "all); its config.json may belong to another file, or the class to another head"
        )
    for name, shape in wanted.items():
        if shapes[name] != shape:
            raise ValueError(
                f"{path.name}: tensor {name!r} has shape {shapes[name]}, but config.json makes it "
                f"{shape}: one of them was altered, copy the artefact again"
            )


def finalize(model: PreTrainedModel, techniques: Sequence[Technique]) -> PreTrainedModel:
    """Rounds every tensor to the width it is stored in and marks the model as packed, in place.

    Attention goes back to PyTorch's own, unless its products are quantized. Models whose
    techniques change no width stay ordinary and trainable.
    """
    model = finalize_all(model, techniques).eval()
    config = model.config
    if config._attn_implementation == attention.NAME and not any(
        getattr(t, "attention", None) for t in techniques
    ):
        model.set_attn_implementation("sdpa")
    stored = [t for t in techniques if t.stored]
    layers = structure.uneven(model)
    if stored or layers:
        model = pack_(model)  # where nothing is quantized: rounds to fp16, as it is stored
        version = _version(model, {type(t) for t in stored}, layers)
        config.quantization_config = XtcConfig([t.to_dict() for t in stored], version, layers)
        model.hf_quantizer = XtcQuantizer(config.quantization_config, pre_quantized=True)
        model.is_quantized = True
    return model


def _version(model: PreTrainedModel, kinds: set[type], layers: Sequence[dict] | None) -> int:
    """The oldest format that holds all that a model has."""
    if SplitTernary in kinds or any(hasattr(m, "input_clip") for m in model.modules()):
        return 5
    if Sparsify in kinds or any("head_size" in layer for layer in layers or ()):
        return 4
    return 3 if layers else 2 if Storage in kinds else 1


def unpack(model: PreTrainedModel) -> PreTrainedModel:
    """A packed model as one that trains: dequantized weights, same quantizers; in place."""
    for name, module in list(model.named_modules()):
        if not isinstance(module, _Packed):
            continue
        weight = nn.Parameter(module.quantized().dequantize())
        if isinstance(module, PackedLinear):
            linear = linear_of(weight, module.bias)
            if isinstance(module, SparseLinear):
                linear = MaskedLinear.from_linear(linear)
                linear.mask.copy_(module.present())
            if isinstance(module, SparseLinear) and not module.quantizes:
                replace_module_(model, name, linear)
                continue
            new = QuantLinear.from_linear(linear, module.weights, module.activations)
            if new.input_clip is not None:
                new.input_clip.data.copy_(module.input_clip)
        else:
            table = nn.Embedding(module.rows, module.columns, device="meta")
            table.weight = weight
            new = QuantEmbedding.from_embedding(table, module.weights)
        replace_module_(model, name, new)
    if getattr(model, "hf_quantizer", None) is not None:
        model.hf_quantizer.remove_quantization_config(model)
    return model


def with_activations(model: PreTrainedModel, scheme: Scheme | str) -> PreTrainedModel:
    """A copy of a packed model whose quantized inputs are rounded by another scheme.

    What a runtime with a scheme of its own computes: ``uint8-tensor`` is ONNX's. Weights and the
    layers whose inputs are not quantized stay.
    """
    scheme, model = Scheme.parse(scheme), copy.deepcopy(model)
    linears = [m for m in model.modules() if isinstance(m, PackedLinear) and m.activations]
    if not linears:
        raise ValueError(
            f"this {type(model).__name__} has no packed layer that quantizes its input: "
            "compress it first, with `activations`"
        )
    for linear in linears:
        linear.activations = scheme
        linear._buffers.pop("input_clip", None)
    held = model.config.quantization_config
    held.techniques = [  # what is saved says what is computed
        replace(t, activations=scheme).to_dict() if isinstance(t, Quantize) else t.to_dict()
        for t in map(technique, held.techniques)
    ]
    return model


def save(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    folder: str | Path,
    replace: bool = False,
) -> Path:
    """Writes an artefact whole or not at all.

    ``replace``: an older artefact there goes once the new one is complete; otherwise raises
    ``FileExistsError`` for a folder that is not empty. ``OSError`` if it cannot be written.
    """
    try:
        with staged_folder(folder, replace) as partial:
            model.save_pretrained(partial)
            tokenizer.save_pretrained(partial)
    except SafetensorError as error:
        raise OSError(
            f"cannot write the artefact to {folder}: {error}; nothing there was changed"
        ) from None
    return Path(folder)


def load(folder: str | Path) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """An artefact's model, in eval mode, and its tokenizer.

    Raises ``FileNotFoundError`` for a folder without ``config.json`` and ``ValueError`` for damaged
    weights and for a model without a classifier.
    """
    folder = Path(folder)
    if not (folder / "config.json").is_file():
        raise FileNotFoundError(
            f"no config.json in {folder}: expected a folder written by `save_pretrained` or "
            "`xtc compress … --out`"
        )
    try:
        model, about = AutoModelForSequenceClassification.from_pretrained(
            folder, trust_remote_code=False, use_safetensors=True, local_files_only=True,
            output_loading_info=True,
        )  # fmt: skip
    except SafetensorError as error:
        raise ValueError(f"{WEIGHTS} in {folder} is truncated or damaged: {error}") from None
    except RuntimeError as error:  # what transformers raises for weights of other shapes
        raise ValueError(
            f"{WEIGHTS} in {folder} does not fit config.json: one of them was altered, copy the "
            f"artefact again ({str(error).splitlines()[0]})"
        ) from None
    if about["missing_keys"]:
        raise ValueError(
            f"{folder} holds no {sorted(about['missing_keys'])[0]!r}: it is no classifier; "
            "fine-tune it first (`xtc compress` makes one)"
        )
    return model.eval(), AutoTokenizer.from_pretrained(folder, local_files_only=True)
