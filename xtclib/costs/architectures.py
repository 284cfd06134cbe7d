"""The architectures of the compression papers, by name, as models without weights.

The catalogue is ``architectures.yaml`` beside this file. A config from ``transformers`` where it
has the model, a short definition where it has not. Models are built on PyTorch's meta device:
BERT-large costs no memory.
"""

from __future__ import annotations

from dataclasses import dataclass
from difflib import get_close_matches
from importlib import resources
from pathlib import Path

import torch
import yaml
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForSequenceClassification, PretrainedConfig

from xtclib.bert import read_config
from xtclib.files import first_line
from xtclib.techniques.pruning.surgery import resize_, saved_widths
from xtclib.techniques.students import shallow  # noqa: F401 - registers its configs

_FIELDS = {
    "layers": "num_hidden_layers",
    "width": "hidden_size",
    "heads": "num_attention_heads",
    "feed_forward": "intermediate_size",
}


@dataclass(frozen=True)
class Architecture:
    """A row of the catalogue: what it is, where it comes from, and the settings of its config."""

    name: str
    summary: str
    source: str
    type: str
    settings: dict[str, int | bool]

    def make(self) -> PretrainedConfig | nn.Module:
        """The config that ``transformers`` knows by this type, or a module of our own."""
        if self.type == "elmo":
            return ElmoClassifier()
        values = dict(self.settings)
        if width := values.get("width"):  # as in BERT, unless told
            values = {"heads": max(width // 64, 1), "feed_forward": 4 * width, **values}
        return AutoConfig.for_model(self.type, **{_FIELDS.get(k, k): v for k, v in values.items()})


class ElmoClassifier(nn.Module):
    """ELMo's encoder under a linear classifier, on characters of words.

    Peters et al. 2018, arXiv:1802.05365, section 3: 2048 character n-gram filters, two highway
    layers, a projection to 512; two bidirectional LSTM layers of 4096 units, projected to 512.
    ``input_ids`` [batch, words]; each word stands for 50 characters.
    """

    FILTERS = ((1, 32), (2, 32), (3, 64), (4, 128), (5, 256), (6, 512), (7, 1024))
    CHARACTERS = 50

    def __init__(self, num_labels: int = 2):
        super().__init__()
        self.characters = nn.Embedding(261, 16)
        self.filters = nn.ModuleList(nn.Conv1d(16, n, width) for width, n in self.FILTERS)
        self.highways = nn.ModuleList(nn.Linear(2048, 2 * 2048) for _ in range(2))
        self.projection = nn.Linear(2048, 512)
        self.forwards = nn.ModuleList(nn.LSTM(512, 4096, proj_size=512) for _ in range(2))
        self.backwards = nn.ModuleList(nn.LSTM(512, 4096, proj_size=512) for _ in range(2))
        self.classifier = nn.Linear(1024, num_labels)

    def forward(self, input_ids: Tensor) -> Tensor:
        """[batch, words] → logits [batch, labels]."""
        batch, words = input_ids.shape
        spelled = input_ids[..., None].expand(batch, words, self.CHARACTERS)
        x = self.characters(spelled).flatten(0, 1).transpose(1, 2)  # (batch · words, 16, 50)
        x = torch.cat([conv(x).amax(-1).relu() for conv in self.filters], -1)  # (…, 2048)
        for highway in self.highways:
            new, gate = highway(x).chunk(2, -1)
            x = gate.sigmoid() * x + (1 - gate.sigmoid()) * new.relu()
        x = self.projection(x).view(batch, words, 512).transpose(0, 1)
        ahead, back = x, x.flip(0)
        for left, right in zip(self.forwards, self.backwards, strict=True):
            ahead, back = left(ahead)[0], right(back)[0]
        return self.classifier(torch.cat([ahead, back.flip(0)], -1).amax(0))


OWN = (ElmoClassifier,)  # beside those of `transformers`


def _read() -> dict[str, Architecture]:
    """The catalogue: by source, then by name, what differs from the type's defaults."""
    text = (resources.files("xtclib.costs") / "architectures.yaml").read_text(encoding="utf-8")
    found = {}
    for source, rows in yaml.safe_load(text).items():
        for name, row in rows.items():
            kind, summary, note = row.pop("type"), row.pop("summary", ""), row.pop("note", "")
            summary = summary or f"{row['layers']} layers, {row['width']} wide{note}"
            found[name] = Architecture(name, summary, source, kind, row)
    return found


ARCHITECTURES = _read()
_SAME = {"bert-base-uncased": "bert-base", "bert-large-uncased": "bert-large"}


def config_of(name: str | Path) -> PretrainedConfig | nn.Module:
    """A catalogue name, a folder with a config or a Hub id → its config (or a meta-device module).

    Raises ``ValueError`` for a name that is none of these, with the nearest ones, and
    ``FileNotFoundError`` for a folder without a config.

    >>> config_of("tinybert-4l").hidden_size
    312
    """
    text = str(name)
    known = ARCHITECTURES.get(_SAME.get(text, text))
    if known is not None:
        with torch.device("meta"):
            return known.make()
    folder = Path(text).expanduser()
    if not folder.exists() and text.startswith((".", "/", "~")):
        raise FileNotFoundError(f"no folder at {text!r}")
    if folder.is_dir() and not (folder / "config.json").is_file():
        raise FileNotFoundError(
            f"{folder} holds no config.json: expected a folder saved by `save_pretrained`, the id "
            "of a model on the Hub, or one of the built-in names (`xtc breakdown --list`)"
        )
    if not folder.is_dir() and "/" not in text:
        near = get_close_matches(text, ARCHITECTURES, 3, 0.5)
        meant = f"did you mean {' or '.join(map(repr, near))}? " if near else ""
        raise ValueError(
            f"unknown architecture {text!r}: {meant}`xtc breakdown --list` shows all "
            f"{len(ARCHITECTURES)}; a folder or a Hub id (owner/name) will do too"
        )
    return read_config(folder if folder.is_dir() else text)


def build(source: str | Path | PretrainedConfig | nn.Module) -> nn.Module:
    """A sequence classifier without weights, on the meta device, with eager attention.

    ``source`` is what :func:`config_of` takes, or its answer. Raises ``ValueError`` for a config
    that has no sequence classifier.

    >>> model = build("bert-base")
    >>> sum(p.numel() for p in model.base_model.parameters())
    109482240
    """
    found = config_of(source) if isinstance(source, (str, Path)) else source
    if isinstance(found, nn.Module):
        return found
    values = found.to_dict()
    values.pop("quantization_config", None)
    config = type(found).from_dict(values)
    config._attn_implementation = "eager"
    try:
        with torch.device("meta"):
            model = AutoModelForSequenceClassification.from_config(config).eval()
    except (RuntimeError, TypeError, LookupError, AttributeError, ArithmeticError) as error:
        kind = type(config).__name__
        raise ValueError(f"no model can be built from this {kind}: {first_line(error)}") from None
    widths = saved_widths(found)
    if widths:
        resize_(model, widths)
    return model
