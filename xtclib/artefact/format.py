"""The artefact: a folder with packed weights that ``from_pretrained`` opens.

``config.json`` carries ``quantization_config`` with ``quant_method: "xtc"`` and the techniques, so
that the structure is rebuilt before the weights load. ``model.safetensors`` holds packed bytes
under the weights' own names, and a sha256 for each tensor in its metadata. A program that never
imported ``xtclib`` finds bytes of another shape where it expects a weight, and stops.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn
from transformers import (
    AutoConfig,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.quantizers import HfQuantizer, register_quantization_config, register_quantizer
from transformers.utils.quantization_config import QuantizationConfigMixin

from xtclib import attention
from xtclib.artefact.checks import (
    WEIGHTS,
    check_config,
    check_file,
    check_tensors,
    make_room_,
    numeric,
    techniques_of,
)
from xtclib.bert import replace_module_
from xtclib.cache import digest
from xtclib.files import first_line, staged_folder
from xtclib.techniques.base import pack_
from xtclib.techniques.pruning import surgery  # noqa: F401 - registers its models
from xtclib.techniques.pruning.layers import MaskedLinear, SparseLinear
from xtclib.techniques.pruning.unstructured import Sparsify
from xtclib.techniques.quantization.layers import QuantEmbedding, QuantLinear, linear_of
from xtclib.techniques.quantization.packed import PackedLinear, _Packed
from xtclib.techniques.quantization.quantizers import Scheme
from xtclib.techniques.quantization.splitting import SplitTernary
from xtclib.techniques.quantization.technique import Quantize, Storage
from xtclib.techniques.registry import Technique, finalize_all, technique

# 2 knows `storage`, 3 `layers`, 4 `sparsify` and `head_size`, 5 `split_ternary` and learned
# activations, 6 the sealed weight; else 1 is written.
FORMAT = 6


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
        if not isinstance(format, int) or isinstance(format, bool) or format < 1:
            raise ValueError(
                f"the format of an artefact is a whole number from 1, its config says {format!r}: "
                "it was altered, copy the artefact again"
            )
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
        check_config(model.config, path)
        if surgery.saved_widths(model.config):
            surgery.resize_(model, surgery.saved_widths(model.config))
        for config in self.quantization_config.techniques:
            technique(config).rebuild(model)
        make_room_(model, shapes)
        if self.quantization_config.format >= 6:
            _reshape_sealed_(model, lambda weight: weight.unsqueeze(-1))
        check_tensors(model, shapes, path)

    def _process_model_after_weight_loading(self, model, **kwargs):
        if self.quantization_config.format >= 6:
            _reshape_sealed_(model, lambda weight: weight.squeeze(-1))
        return model

    def get_state_dict_and_metadata(self, model):
        """Floats as fp16, bytes as they are, a sha256 for each, and what the config must say."""
        tensors = {
            name: (t.detach().half() if t.is_floating_point() else t.detach()).cpu().contiguous()
            for name, t in model.state_dict().items()
        }
        sealed = _sealed(model)
        if sealed and model.config.quantization_config.format >= 6:  # an older one stays as it was
            tensors[sealed] = tensors[sealed].unsqueeze(-1)
        sums = {name: digest(t) for name, t in tensors.items()}
        return tensors, {"xtc": json.dumps(sums), "xtc_config": json.dumps(numeric(model.config))}


def _sealed(model: PreTrainedModel) -> str | None:
    """The plain weight that is stored as a column, so that a program without xtclib stops at it.

    Only where no packed matrix stands under a weight's own name to stop it: where every one is
    split in two, and where nothing but attention's operands is quantized.
    """
    listed = {name for held in techniques_of(model.config) for name in held}
    packed = [
        name
        for name, module in model.named_modules()
        if isinstance(module, _Packed) and not name.endswith((".first", ".second"))
    ]
    if packed or not listed & {Quantize.name, SplitTernary.name}:
        return None
    plain = ((n, p) for n, p in model.named_parameters() if n.endswith(".weight") and p.dim() <= 2)
    return next(name for name, parameter in plain if parameter.squeeze(-1).dim() == 1)


def _reshape_sealed_(model: PreTrainedModel, change: Callable[[Tensor], Tensor]) -> None:
    name = _sealed(model)
    if name:
        owner, _, own = name.rpartition(".")
        module = model.get_submodule(owner)
        weight = getattr(module, own)
        setattr(module, own, nn.Parameter(change(weight.detach()), weight.requires_grad))


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
    layers = surgery.uneven(model)
    if stored or layers:
        model = pack_(model)  # where nothing is quantized: rounds to fp16, as it is stored
        config.quantization_config = XtcConfig([t.to_dict() for t in stored], layers=layers)
        config.quantization_config.format = _version(model, {type(t) for t in stored}, layers)
        model.hf_quantizer = XtcQuantizer(config.quantization_config, pre_quantized=True)
        model.is_quantized = True
    return model


def _version(model: PreTrainedModel, kinds: set[type], layers: Sequence[dict] | None) -> int:
    """The oldest format that holds all that a model has."""
    if _sealed(model):
        return 6
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
    except FileExistsError:
        raise
    except (SafetensorError, OSError) as error:
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
    _check_folder(folder)
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
            f"artefact again ({first_line(error)})"
        ) from None
    if about["missing_keys"]:
        raise ValueError(
            f"{folder} holds no {sorted(about['missing_keys'])[0]!r}: it is no classifier; "
            "fine-tune it first (`xtc compress` makes one)"
        )
    return model.eval(), _load_tokenizer(folder)


def _load_tokenizer(folder: Path) -> PreTrainedTokenizerBase:
    reason = "no file with its words"
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
        # Without such a file transformers makes an empty tokenizer and says nothing.
        if any((folder / name).is_file() for name in tokenizer.vocab_files_names.values()):
            return tokenizer
    except Exception as error:  # transformers raises of every kind here too
        reason = first_line(error)
    raise ValueError(
        f"no tokenizer can be read in {folder} ({reason}): copy tokenizer.json and "
        "tokenizer_config.json there, as `save` writes them"
    )


def _check_folder(folder: Path) -> None:
    """Raises ``ValueError`` for a config that no model can be built from, or of other weights.

    Before anything is built: a config of a hundred thousand layers would take minutes.
    """
    try:
        config = AutoConfig.from_pretrained(folder, trust_remote_code=False, local_files_only=True)
    except Exception as error:  # transformers raises of every kind here
        raise ValueError(
            f"config.json in {folder} cannot be read ({first_line(error)}): it was "
            "altered or damaged, copy the artefact again"
        ) from None
    path = folder / WEIGHTS
    if not path.is_file():
        return  # the loader says so
    try:
        with safe_open(path, "pt") as file:
            ours = "xtc" in (file.metadata() or {})
    except SafetensorError:
        return
    held = getattr(config, "quantization_config", None) or {}
    if ours and (held.get("quant_method") if isinstance(held, dict) else "") != "xtc":
        raise ValueError(
            f"{WEIGHTS} in {folder} is packed, but config.json does not say how: its "
            "quantization_config was altered, copy the artefact again"
        )
    if ours:
        check_config(config, path)
