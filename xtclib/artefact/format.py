"""The artefact: a folder with packed weights that ``from_pretrained`` opens.

``config.json`` carries ``quantization_config`` with ``quant_method: "xtc"`` and the techniques, so
that the structure is rebuilt before the weights load. ``model.safetensors`` holds packed bytes
under the weights' own names, and a sha256 for each tensor in its metadata. A program that never
imported ``xtclib`` finds bytes of another shape where it expects a weight, and stops.
"""

from __future__ import annotations

import copy
import json
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from safetensors import SafetensorError
from torch import nn
from transformers import (
    AutoTokenizer,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.quantizers import HfQuantizer, register_quantization_config, register_quantizer
from transformers.utils.quantization_config import QuantizationConfigMixin

from xtclib import attention, bert
from xtclib.artefact import checks
from xtclib.artefact.checks import WEIGHTS
from xtclib.artefact.encoders import write_pooling
from xtclib.cache import digest, opened
from xtclib.config import short
from xtclib.files import SUMS, first_line, seal, staged_folder
from xtclib.tasks.rows import plain_
from xtclib.techniques.base import Stored, Technique, check_finite, held, pack_, technique
from xtclib.techniques.pruning import surgery

_CLASSIFIER = transformers.AutoModelForSequenceClassification
FORMAT = 1  # the highest that this xtclib reads


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
        self.format = format
        if layers is not None:
            self.layers = checks.check_layers(layers)
        if not isinstance(techniques, (list, tuple)):
            raise ValueError(
                f"an artefact's techniques are a list, its config says {short(techniques)}: it was "
                "altered, copy the artefact again"
            )
        self.techniques = list(techniques)
        if not isinstance(format, int) or isinstance(format, bool) or format < 1:
            raise ValueError(
                f"an artefact's format is a whole number from 1, its config says {short(format)}: "
                "it was altered, copy the artefact again"
            )
        if format > FORMAT:
            has = f"this artefact has format {format}"
            raise ValueError(f"{has}; this xtclib reads up to {FORMAT}: update it")


@register_quantizer("xtc")
class XtcQuantizer(HfQuantizer):
    """Loads and saves packed models inside ``from_pretrained`` and ``save_pretrained``.

    Models in the form that trains (:func:`trainable`) are packed as they are saved.
    """

    requires_calibration = True
    packed = True

    @property
    def is_trainable(self) -> bool:
        return False

    @property
    def is_qat_trainable(self) -> bool:
        """What ``Trainer`` asks; ``ValueError`` for a model whose weights are packed."""
        if self.packed:
            raise ValueError("packed weights do not train: train xtclib.trainable(model) instead")
        return True

    def is_serializable(self) -> bool:
        return True

    def update_dtype(self, dtype: torch.dtype) -> torch.dtype:
        """fp32 whatever was asked for: scales and tables are fp32; autocast gives bf16 products."""
        return torch.float32

    def _process_model_before_weight_loading(self, model, checkpoint_files=(), **kwargs) -> None:
        path = Path((checkpoint_files or [""])[0])
        shapes = checks.check_files(list(map(Path, checkpoint_files or [""])))
        checks.check_given(model.config, path)
        widths = surgery.saved_widths(model.config)
        if widths:
            surgery.resize_(model, widths)
        for config in self.quantization_config.techniques:
            technique(config).rebuild(model)
        checks.make_room_(model, shapes)
        self._sealed = sealed(model)
        _reshape_(model, self._sealed, lambda weight: weight.unsqueeze(-1))
        checks.check_tensors(model, shapes, path)

    def _process_model_after_weight_loading(self, model, **kwargs):
        _reshape_(model, self._sealed, lambda weight: weight.squeeze(-1))
        _mark_(model, self)
        model.register_load_state_dict_pre_hook(_read_checkpoint)
        return model

    def get_state_dict_and_metadata(self, model):
        """Floats as fp16, bytes as they are, a sha256 for each, and what the config must say."""
        chosen = [technique(item) for item in self.quantization_config.techniques]
        packs = any(item.unpacked != item for item in chosen)
        if packs and any(hasattr(module, "stored") for module in model.modules()):
            model = finalize(copy.deepcopy(model), chosen)
        tensors = {
            name: (t.detach().half() if t.is_floating_point() else t.detach()).cpu().contiguous()
            for name, t in model.state_dict().items()
        }
        if column := sealed(model):
            tensors[column] = tensors[column].unsqueeze(-1)
        sums = {name: digest(tensor) for name, tensor in tensors.items()}
        said = {"xtc": sums, "xtc_config": checks.numeric(model.config)}
        return tensors, {key: json.dumps(value, sort_keys=True) for key, value in said.items()}


def sealed(model: PreTrainedModel) -> str | None:
    """The plain weight that is stored as a column, so that a program without xtclib stops at it.

    Packed bytes under a weight's own name stop it too, but not every technique leaves some.
    """
    flat = (name for name, weight in model.named_parameters() if weight.dim() == 1)
    return next((name for name in flat if name.endswith(".weight")), None)


def _reshape_(model: PreTrainedModel, name: str | None, change: Callable) -> None:
    if name:
        module = model.get_submodule(name.removesuffix(".weight"))
        old = module.weight
        module.weight = nn.Parameter(change(old.detach()), old.requires_grad)


def _read_checkpoint(model: nn.Module, tensors: dict, prefix: str, *_: object) -> None:
    """Fits the weights of ``Trainer``'s checkpoint, saved as an artefact, to the model again."""
    column = sealed(model)
    if column in tensors and tensors[column].ndim == 2:
        tensors[column] = tensors[column].squeeze(-1)
    trains, own = any(hasattr(module, "stored") for module in model.modules()), model.state_dict()
    packed = {name for name, tensor in tensors.items() if tensor.dtype == torch.uint8}
    if trains and any(name not in own or own[name].dtype != torch.uint8 for name in packed):
        raise ValueError(
            "this checkpoint holds packed weights, from which training cannot go on exactly: train "
            "xtclib.trainable(model, pack=False), and pack at the end"
        )


def finalize(model: PreTrainedModel, techniques: Sequence[Technique]) -> PreTrainedModel:
    """Rounds every tensor to the width it is stored in and marks the model as packed, in place.

    Attention goes back to PyTorch's own, unless its products are quantized. Models whose
    techniques change no width stay ordinary and trainable.
    """
    for item in techniques:
        model = item.finalize(model)
    attention.leave(model.eval())
    stored, layers = [t.to_dict() for t in techniques if t.stored], surgery.uneven(model)
    if stored or layers:
        model = pack_(model)  # where nothing is quantized: rounds to fp16, as it is stored
        needed = max((m.format for m in model.modules() if isinstance(m, Stored)), default=1)
        _mark_(model, XtcQuantizer(XtcConfig(stored, needed, layers), pre_quantized=True))
    return model


def _mark_(model: PreTrainedModel, quantizer: XtcQuantizer) -> None:
    """Says by what a model is saved, and whether it is packed now; in place."""
    quantizer.packed = any(isinstance(module, Stored) for module in model.modules())
    model.config.quantization_config = quantizer.quantization_config
    model.hf_quantizer, model.is_quantized = quantizer, quantizer.packed


def trainable(model: PreTrainedModel, pack: bool = True) -> PreTrainedModel:
    """A loaded artefact as one that trains: dequantized weights, same quantizers; in place.

    ``save_pretrained`` packs it again, as before. ``pack=False``: it writes ordinary weights, which
    open as an unquantized model of the same structure; ``Trainer``'s own checkpoints need that.
    A model without packed layers trains as it is.

    >>> from xtclib.techniques import Quantize
    >>> from transformers import BertConfig, BertForSequenceClassification
    >>> tiny = BertConfig(vocab_size=9, hidden_size=4, num_hidden_layers=1, num_attention_heads=1)
    >>> packed = finalize(Quantize().apply(BertForSequenceClassification(tiny)), [Quantize()])
    >>> packed.is_quantized, trainable(packed).is_quantized
    (True, False)
    """
    for name, module in list(model.named_modules()):
        if isinstance(module, Stored):
            bert.replace_module_(model, name, module.trainable())
    quantizer = getattr(model, "hf_quantizer", None)
    if quantizer is not None and not pack:
        loose = (technique(item).unpacked for item in held(model.config))
        said = [item.to_dict() for item in loose if item]
        quantizer.remove_quantization_config(model)
        layers = surgery.uneven(model)
        structure = XtcConfig(said, layers=layers) if said or layers else None
        quantizer = structure and XtcQuantizer(structure, pre_quantized=True)
    if quantizer is not None:
        _mark_(model, quantizer)
    return model


def save(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, folder: str | Path,
         replace: bool = False, again: bool = False, reopen: bool = False) -> Path:  # fmt: skip
    """Writes an artefact whole or not at all, with the sums of its files.

    ``replace``: an older artefact there goes once the new one is complete; ``again``: the same one
    may be there; otherwise raises ``FileExistsError`` for a folder that is not empty. ``OSError``
    if it cannot be written. ``reopen``: a fresh process opens it first, and is compared
    (:func:`check_reopens`).
    """
    folder = Path(folder).expanduser()
    try:
        with staged_folder(folder, replace, again) as partial:
            model.save_pretrained(partial)
            _sort_metadata_(partial / WEIGHTS)
            plain_(tokenizer).save_pretrained(partial)
            write_pooling(model, partial)
            seal(partial)
            if reopen:
                check_reopens(model, partial, fresh=True)
    except FileExistsError:
        raise
    except (SafetensorError, OSError) as error:
        fault = f"cannot write the artefact to {folder}: {error}"
        raise OSError(f"{fault}; nothing there was changed") from None
    return folder


_ANSWER = """
import json, sys, torch, warnings
warnings.simplefilter("ignore")
from xtclib.artefact import format
torch.set_num_threads(int(sys.argv[2]))
print(json.dumps(format.answer(format.load(sys.argv[1])[0])))
"""


def answer(model: PreTrainedModel) -> list[float]:
    """A model's logits, or states, for two rows of token ids, for two programs to compare."""
    count = min(bert.longest(model) or 16, 16)
    ids = torch.arange(2 * count).reshape(2, count) % min(model.config.vocab_size, 1000)
    with torch.no_grad():
        return bert.logits_of(model(input_ids=ids)).flatten().tolist()


def check_reopens(model: PreTrainedModel, folder: Path, fresh: bool = False) -> None:
    """Raises ``ValueError`` unless a folder opens to the answers of the model saved there.

    ``fresh``: in a process of its own, where nothing is but what was saved; or here, for techniques
    that are not xtclib's, of which such a process knows nothing.
    """
    kinds = [type(technique(item)).__module__ for item in held(model.config)]
    fresh = fresh and all(name.startswith("xtclib.") for name in kinds)
    wanted = answer(model)
    if fresh:
        command = [sys.executable, "-c", _ANSWER, str(folder), str(torch.get_num_threads())]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            why = (done.stderr.strip().splitlines() or ["it stopped"])[-1]
            raise ValueError(f"the artefact does not open in a fresh process: {why}")
        found = json.loads(done.stdout.splitlines()[-1])
    else:
        found = answer(load(folder)[0])
    if not np.allclose(found, wanted, rtol=1e-3, atol=1e-4):
        apart = float(np.abs(np.subtract(found, wanted)).max())
        raise ValueError(f"the artefact opens to answers that are off by {apart:g}")


def _sort_metadata_(path: Path) -> None:
    """Orders the metadata in a safetensors file's header, in place: the library has it by chance.

    The same model then gives the same file, byte for byte.
    """
    with path.open("r+b") as file:
        size = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(size))
        header["__metadata__"] = dict(sorted(header.get("__metadata__", {}).items()))
        text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
        if len(text) <= size:  # else it was written by another library: leave it
            file.seek(8)
            file.write(text.ljust(size))


def load(folder: str | Path) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """An artefact's model, in eval mode, and its tokenizer.

    Raises ``FileNotFoundError`` for a folder without ``config.json`` and ``ValueError`` for damaged
    weights and for a model without a classifier.
    """
    folder = Path(folder).expanduser()
    if not (folder / "config.json").is_file():
        expected = "expected a folder that `xtc compress … --out` wrote"
        raise FileNotFoundError(f"no config.json in {folder}: {expected}")
    config = read_config(folder, whole=False)
    try:
        model, about = _auto_class(config, folder).from_pretrained(
            folder, trust_remote_code=False, use_safetensors=True, local_files_only=True,
            output_loading_info=True,
        )  # fmt: skip
    # What transformers raises for weights of other shapes, and for values that make no model.
    except (RuntimeError, TypeError, LookupError, AttributeError, ArithmeticError) as error:
        raise ValueError(
            f"{WEIGHTS} in {folder} does not fit config.json: one of them was altered, copy the "
            f"artefact again ({first_line(error)})"
        ) from None
    if about["missing_keys"]:
        raise ValueError(
            f"{folder} holds no {sorted(about['missing_keys'])[0]!r}: it is no classifier; "
            "fine-tune it first (`xtc compress` makes one)"
        )
    check_finite(model, str(folder))
    return model.eval(), _load_tokenizer(folder)


def _auto_class(config: PretrainedConfig, folder: Path) -> Any:
    """The class that opens what a config says was saved: by its head, or as an encoder."""
    kind = next(iter(config.architectures or []), "")
    for head in ("TokenClassification", "QuestionAnswering"):
        if kind.endswith(f"For{head}"):
            return getattr(transformers, f"AutoModelFor{head}")
    encodes = kind.endswith("Model") and (folder / SUMS).is_file()  # a pre-trained model is none
    return transformers.AutoModel if encodes else _CLASSIFIER


def _load_tokenizer(folder: Path) -> PreTrainedTokenizerBase:
    reason = "no file with its words"
    try:
        tokenizer = AutoTokenizer.from_pretrained(
            folder, local_files_only=True, trust_remote_code=False
        )
        # Without such a file transformers makes an empty tokenizer and says nothing.
        if any((folder / name).is_file() for name in tokenizer.vocab_files_names.values()):
            return tokenizer
    except Exception as error:  # transformers raises of every kind here too
        reason = first_line(error)
    raise ValueError(
        f"no tokenizer can be read in {folder} ({reason}): copy tokenizer.json and "
        "tokenizer_config.json there, as `save` writes them"
    )


def read_config(folder: Path, whole: bool = True) -> PretrainedConfig:
    """The config of a saved model, an artefact or not, before anything is built from it.

    Raises ``ValueError`` for one that no model can be built from or that is of other weights, and
    for files that are not what their sums say; not ``whole``: packed weights check themselves.
    """
    config, path = bert.read_config(folder), folder / WEIGHTS
    said = getattr(config, "quantization_config", None)
    if said is not None and not isinstance(said, dict):
        raise ValueError(f"config.json in {folder}: quantization_config is {short(said)}, no names")
    ours = said is not None and said.get("quant_method") == "xtc"
    if said is not None and ours:
        for name in XtcConfig(**said).techniques:
            technique(name)
    packed = False
    if path.is_file():  # else the loader says so
        with opened(path) as file:
            packed = "xtc" in (file.metadata() or {})
    if packed and not ours:
        raise ValueError(
            f"{WEIGHTS} in {folder} is packed, but config.json does not say how: its "
            "quantization_config was altered, copy the artefact again"
        )
    if packed:
        checks.check_config(config, path)
    checks.check_sums(folder, WEIGHTS if packed and not whole else "")
    return config
