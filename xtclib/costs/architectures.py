"""The architectures of the compression papers, by name, as models without weights.

A config from ``transformers`` where it has the model, a short definition where it has not. Models
are built on PyTorch's meta device: BERT-large costs no memory.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from difflib import get_close_matches
from functools import partial
from pathlib import Path

import torch
import transformers
from torch import Tensor, nn
from transformers import (
    AlbertConfig,
    AutoModelForSequenceClassification,
    BertConfig,
    DistilBertConfig,
    ElectraConfig,
    MobileBertConfig,
    OpenAIGPTConfig,
    PretrainedConfig,
    SqueezeBertConfig,
)

from xtclib.techniques.pruning.surgery import resize_, saved_widths
from xtclib.techniques.students.shallow import BiLSTMConfig, CNNConfig


@dataclass(frozen=True)
class Architecture:
    """A name, where it comes from, and how to make it: a config, or a module of our own."""

    name: str
    summary: str
    source: str
    make: Callable[[], PretrainedConfig | nn.Module]


def _bert(layers: int, hidden: int, intermediate: int = 0, heads: int = 0, vocab: int = 30522):
    """A BERT config; the feed-forward layer is 4 × as wide, and a head 64, unless told."""
    return BertConfig(
        vocab_size=vocab,
        hidden_size=hidden,
        num_hidden_layers=layers,
        num_attention_heads=heads or max(hidden // 64, 1),
        intermediate_size=intermediate or 4 * hidden,
    )


def _electra(embedding: int, layers: int, hidden: int, heads: int):
    return ElectraConfig(
        embedding_size=embedding,
        hidden_size=hidden,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        intermediate_size=4 * hidden,
    )


def _albert(hidden: int, layers: int, heads: int):
    return AlbertConfig(
        embedding_size=128,
        hidden_size=hidden,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        intermediate_size=4 * hidden,
    )


def _mobilebert(**values):
    """As Google's configs have it: the first token's state is the pooled one, without a layer."""
    return MobileBertConfig(classifier_activation=False, **values)


def _mobilebert_tiny():
    return _mobilebert(
        num_feedforward_networks=2, use_bottleneck_attention=True, key_query_shared_bottleneck=False
    )


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

_DEVLIN = "Devlin et al. 2019, arXiv:1810.04805"
_PKD = "Sun et al. 2019, arXiv:1908.09355"
_TINYBERT = "Jiao et al. 2020, arXiv:1909.10351"
_MINILM2 = "Wang et al. 2021, arXiv:2012.15828"
_ELECTRA = "Clark et al. 2020, arXiv:2003.10555"
_ALBERT = "Lan et al. 2020, arXiv:1909.11942"
_MOBILE = "Sun et al. 2020, arXiv:2004.02984"
_DUALTRAIN = "Zhao et al. 2019, arXiv:1909.11687"
_TURC = "Turc et al. 2019, arXiv:1908.08962"

_ROWS: list[tuple[str, str, str, Callable]] = [
    ("bert-base", "12 layers, 768 wide", _DEVLIN, partial(_bert, 12, 768)),
    ("bert-large", "24 layers, 1024 wide", _DEVLIN, partial(_bert, 24, 1024)),
    ("pkd-6l", "6 of BERT-base's layers", _PKD, partial(_bert, 6, 768)),
    ("pkd-3l", "3 of BERT-base's layers", _PKD, partial(_bert, 3, 768)),
    (
        "theseus-6l",
        "6 layers, each in place of two",
        "Xu et al. 2020, arXiv:2002.02925",
        partial(_bert, 6, 768),
    ),
    (
        "distilbert",
        "6 layers, no token types, no pooler",
        "Sanh et al. 2019, arXiv:1910.01108",
        DistilBertConfig,
    ),
    ("tinybert-4l", "4 layers, 312 wide", _TINYBERT, partial(_bert, 4, 312, 1200, 12)),
    ("tinybert-6l", "6 layers, 768 wide", _TINYBERT, partial(_bert, 6, 768)),
    ("minilmv2-6l-768", "6 layers, 768 wide", _MINILM2, partial(_bert, 6, 768)),
    ("minilmv2-6l-384", "6 layers, 384 wide", _MINILM2, partial(_bert, 6, 384, 1536, 12)),
    ("minilmv2-12l-384", "12 layers, 384 wide", _MINILM2, partial(_bert, 12, 384, 1536, 12)),
    ("electra-small", "12 layers, 256 wide", _ELECTRA, partial(_electra, 128, 12, 256, 4)),
    ("electra-base", "12 layers, 768 wide", _ELECTRA, partial(_electra, 768, 12, 768, 12)),
    ("electra-large", "24 layers, 1024 wide", _ELECTRA, partial(_electra, 1024, 24, 1024, 16)),
    ("albert-base", "one layer, used 12 times", _ALBERT, partial(_albert, 768, 12, 12)),
    ("albert-large", "one layer, used 24 times", _ALBERT, partial(_albert, 1024, 24, 16)),
    ("albert-xlarge", "one layer, used 24 times", _ALBERT, partial(_albert, 2048, 24, 16)),
    ("albert-xxlarge", "one layer, used 12 times", _ALBERT, partial(_albert, 4096, 12, 64)),
    (
        "squeezebert",
        "BERT-base with grouped convolutions",
        "Iandola et al. 2020, arXiv:2006.11316",
        SqueezeBertConfig,
    ),
    ("mobilebert", "24 bottleneck layers, 128 wide inside", _MOBILE, _mobilebert),
    ("mobilebert-tiny", "MobileBERT with 2 feed-forward networks", _MOBILE, _mobilebert_tiny),
    (
        "openai-gpt",
        "12 layers, left to right",
        "Radford et al. 2018, Improving Language Understanding by Generative Pre-Training",
        partial(OpenAIGPTConfig, pad_token_id=0),
    ),
    (
        "elmo",
        "characters, two bidirectional LSTM layers",
        "Peters et al. 2018, arXiv:1802.05365",
        ElmoClassifier,
    ),
    *(
        (
            f"dualtrain-{width}",
            f"12 layers, {width} wide, a vocabulary of 4928",
            _DUALTRAIN,
            partial(_bert, 12, width, 0, 12, 4928),
        )
        for width in (192, 96, 48)
    ),
    (
        "bilstm",
        "a bidirectional LSTM of 150 units",
        "Tang et al. 2019, arXiv:1903.12136",
        BiLSTMConfig,
    ),
    ("cnn", "300 filters over word vectors", "Kim 2014, arXiv:1408.5882", CNNConfig),
    *(
        (
            f"bert-{layers}-{hidden}",
            f"{layers} layers, {hidden} wide: a Google compact model",
            _TURC,
            partial(_bert, layers, hidden),
        )
        for layers in (2, 4, 6, 8, 10, 12)
        for hidden in (128, 256, 512, 768)
    ),
]
ARCHITECTURES = {row[0]: Architecture(*row) for row in _ROWS}
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
    folder = Path(text)
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
    try:
        return transformers.AutoConfig.from_pretrained(text, trust_remote_code=False)
    except (OSError, ValueError) as error:
        what = (
            f"{folder / 'config.json'} cannot be read"
            if folder.is_dir()
            else f"no config for {text!r}"
        )
        raise ValueError(
            f"{what}: expected a built-in name, a folder with a config.json, or a "
            f"model of the Hub that can be reached ({str(error).strip().splitlines()[0]})"
        ) from None


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
    config = type(found).from_dict(
        {k: v for k, v in found.to_dict().items() if k != "quantization_config"}
    )
    config._attn_implementation = "eager"
    with torch.device("meta"):
        model = AutoModelForSequenceClassification.from_config(config).eval()
    if saved_widths(found):
        resize_(model, saved_widths(found))
    return model
