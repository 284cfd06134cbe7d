"""Students of another shape than their teacher: narrower, with bottlenecks, recurrent.

Each technique makes a new model with the teacher's vocabulary and labels. Weights that have no
counterpart in the teacher are drawn anew, by the run's seed.
"""

from __future__ import annotations

import copy
from typing import Annotated, ClassVar, Literal

import torch
import transformers
from pydantic import Field
from torch import Tensor, nn
from transformers import AutoModelForSequenceClassification, PretrainedConfig, PreTrainedModel

from xtclib.bert import embeddings, encoder_layers, keep_layers, spread
from xtclib.config import Count, Listed, Positive, Size, config
from xtclib.tasks.rows import Calibration
from xtclib.techniques.base import (
    Technique,
    check_plain,
    count_of,
    refuse_packed,
    register,
    word_table,
)
from xtclib.techniques.pruning import surgery
from xtclib.techniques.students.shallow import BiLSTMConfig, CNNConfig
from xtclib.techniques.students.theseus import being_replaced


class _Student(Technique):
    """A technique that makes a new model; subclasses give its config and what it inherits."""

    any_teacher: ClassVar[bool] = False  # takes nothing from it but its vocabulary and labels

    def config(self, teacher: PretrainedConfig) -> PretrainedConfig:
        """The student's config, without what every student takes from its teacher."""
        raise NotImplementedError(f"{type(self).__name__} does not say what student it makes")

    def _whole(self, teacher: PretrainedConfig) -> PretrainedConfig:
        """The config with what every student takes over: vocabulary, padding, labels."""
        config = self.config(teacher)
        config.vocab_size, config.pad_token_id = teacher.vocab_size, teacher.pad_token_id
        config.id2label, config.label2id = dict(teacher.id2label), dict(teacher.label2id)
        config.problem_type = teacher.problem_type
        return config

    def inherit_(self, student: PreTrainedModel, teacher: PreTrainedModel) -> None:
        """Copies into the student what the teacher has for it, in place."""

    @property
    def starts_anew(self) -> bool:
        return type(self).inherit_ is _Student.inherit_

    def apply(self, model: PreTrainedModel, data: Calibration | None = None) -> PreTrainedModel:
        refuse_packed(model)
        if being_replaced(model):
            lost = f"{self.name} would throw away the modules that are being replaced"
            raise ValueError(f"{lost}: list it before replace_modules, or leave one of them out")
        if self.any_teacher:
            return self._made(model, data)
        if model.config.model_type != "bert" or not isinstance(model.classifier, nn.Linear):
            wanted = f"{self.name} makes a student of a BERT classifier"
            raise TypeError(f"{wanted}, received {type(model).__name__}: list it first")
        check_plain(model, self.name)
        word_table(model, self.name)
        if surgery.uneven(model):
            raise ValueError(f"{self.name} comes before heads, neurons or width go: list it first")
        return self._made(model, data)

    def _made(self, model: PreTrainedModel, data: Calibration | None) -> PreTrainedModel:
        torch.manual_seed(0 if data is None else data.initial)
        student = AutoModelForSequenceClassification.from_config(self._whole(model.config))
        with torch.no_grad():
            self.inherit_(student, model)
        return student.to(model.device).train(model.training)

    def plan(self, model: PreTrainedModel) -> PreTrainedModel:
        with torch.device("meta"):
            return AutoModelForSequenceClassification.from_config(self._whole(model.config))


@register
@config
class Compact(_Student):
    """A smaller model of the teacher's kind: fewer layers, narrower, ordinary in every way.

    ``layers``, ``hidden``, ``intermediate`` and ``heads``: a count, a share of the teacher's as a
    fraction below 1, or ``None`` for as many. ``initial``: ``random``, or ``sliced``, where layers
    spread evenly over the teacher's and the first entries of every weight are copied, head by head.
    Source: Turc et al. 2019, arXiv:1908.08962, for compact models that are trained from scratch.

    >>> from transformers import BertConfig
    >>> found = Compact(layers=1 / 3, hidden=312, intermediate=1200).config(BertConfig())
    >>> found.num_hidden_layers, found.hidden_size, found.intermediate_size
    (4, 312, 1200)
    """

    name: ClassVar[str] = "compact"
    layers: Size | None = None
    hidden: Size | None = None
    intermediate: Size | None = None
    heads: Size | None = None
    initial: Literal["sliced", "random"] = "sliced"

    def config(self, teacher: PretrainedConfig) -> PretrainedConfig:
        config = copy.deepcopy(teacher)
        heads = count_of(self.heads, teacher.num_attention_heads, "heads")
        hidden = count_of(self.hidden, teacher.hidden_size, "hidden")
        if isinstance(self.hidden, float) or self.hidden is None:  # a share: the nearest that fits
            hidden = max(round(hidden / heads), 1) * heads
        if hidden % heads:
            uneven = f"a hidden width of {hidden} does not divide into {heads} heads"
            raise ValueError(f"{uneven}: choose a multiple")
        size = teacher.hidden_size // teacher.num_attention_heads
        if self.initial == "sliced" and hidden // heads > size:
            wide = f"{heads} heads of {hidden // heads} dimensions cannot be sliced from heads of"
            raise ValueError(f"{wide} {size}: take more, a smaller width, or `initial: random`")
        config.num_attention_heads, config.hidden_size = heads, hidden
        config.num_hidden_layers = count_of(self.layers, teacher.num_hidden_layers, "layers")
        config.intermediate_size = count_of(self.intermediate, teacher.intermediate_size, "neurons")
        return config

    @property
    def starts_anew(self) -> bool:
        return self.initial == "random"

    def inherit_(self, student: PreTrainedModel, teacher: PreTrainedModel) -> None:
        if self.initial == "random":
            return
        kept = spread(len(encoder_layers(student)), len(encoder_layers(teacher)))
        theirs = dict(keep_layers(teacher, kept).named_parameters())
        size, other = (m.config.hidden_size // m.config.num_attention_heads
                       for m in (student, teacher))  # fmt: skip
        for name, ours in student.named_parameters():
            ours.copy_(_sliced(name, theirs[name], ours.shape, size, other))


@register
@config
class DistilBert(_Student):
    """DistilBERT's architecture, from a teacher's layers: no segments, no pooler.

    Every second layer (or ``layers`` of them) and the embeddings are copied, the first segment's
    embedding into the positions, and the pooler where DistilBERT has its first classifier layer.
    Source: Sanh et al. 2019, arXiv:1910.01108, section 2.
    """

    name: ClassVar[str] = "distilbert"
    layers: Size = 0.5

    def config(self, teacher: PretrainedConfig) -> PretrainedConfig:
        return transformers.DistilBertConfig(
            n_layers=count_of(self.layers, teacher.num_hidden_layers, "layers"),
            dim=teacher.hidden_size, n_heads=teacher.num_attention_heads,
            hidden_dim=teacher.intermediate_size, activation=teacher.hidden_act,
            max_position_embeddings=teacher.max_position_embeddings,
            dropout=teacher.hidden_dropout_prob,
            attention_dropout=teacher.attention_probs_dropout_prob,
        )  # fmt: skip

    def inherit_(self, student: PreTrainedModel, teacher: PreTrainedModel) -> None:
        ours, theirs = student.distilbert.embeddings, embeddings(teacher)
        ours.word_embeddings.weight.copy_(theirs.word_embeddings.weight)
        first = theirs.token_type_embeddings.weight[0]
        ours.position_embeddings.weight.copy_(theirs.position_embeddings.weight + first)
        ours.LayerNorm.load_state_dict(theirs.LayerNorm.state_dict())
        layers, sources = encoder_layers(student), encoder_layers(teacher)
        for layer, index in zip(layers, spread(len(layers), len(sources)), strict=True):
            for name, other in _DISTILBERT.items():
                found = sources[index].get_submodule(other).state_dict()
                layer.get_submodule(name).load_state_dict(found)
        student.pre_classifier.load_state_dict(teacher.base_model.pooler.dense.state_dict())
        student.classifier.load_state_dict(teacher.classifier.state_dict())


_DISTILBERT = {
    "attention.q_lin": "attention.self.query", "attention.k_lin": "attention.self.key",
    "attention.v_lin": "attention.self.value", "attention.out_lin": "attention.output.dense",
    "sa_layer_norm": "attention.output.LayerNorm", "ffn.lin1": "intermediate.dense",
    "ffn.lin2": "output.dense", "output_layer_norm": "output.LayerNorm",
}  # fmt: skip


@register
@config
class Bottleneck(_Student):
    """MobileBERT's architecture at the teacher's depth and width between its blocks.

    Inside, ``inner`` of the width; word vectors of ``embedding`` of it, three at a time;
    ``feed_forwards`` stacked feed-forward networks of ``intermediate`` of the width. By default the
    paper's shares: 128 and 128 of 512, four, 512. Weights are new. Source: Sun et al. 2020,
    arXiv:2004.02984, section 3.1.
    """

    name: ClassVar[str] = "bottleneck"
    inner: Positive = 0.25
    embedding: Positive = 0.25
    intermediate: Positive = 1.0
    feed_forwards: Count = 4
    layers: Size | None = None

    def config(self, teacher: PretrainedConfig) -> PretrainedConfig:
        width, heads = teacher.hidden_size, teacher.num_attention_heads
        return transformers.MobileBertConfig(
            num_hidden_layers=count_of(self.layers, teacher.num_hidden_layers, "layers"),
            hidden_size=width, num_attention_heads=heads,
            intermediate_size=max(round(self.intermediate * width), 1),
            embedding_size=max(round(self.embedding * width), 1),
            intra_bottleneck_size=max(round(self.inner * width / heads), 1) * heads,
            num_feedforward_networks=self.feed_forwards, classifier_activation=False,
            max_position_embeddings=teacher.max_position_embeddings,
            type_vocab_size=teacher.type_vocab_size,
        )  # fmt: skip


@register
@config
class BiLSTM(_Student):
    """One bidirectional LSTM over word vectors (:class:`.shallow.BiLSTMClassifier`).

    ``embedding``, ``hidden`` and ``dense`` units. Source: Tang et al. 2019, arXiv:1903.12136.
    """

    name: ClassVar[str] = "bilstm"
    any_teacher: ClassVar[bool] = True
    embedding: Count = 300
    hidden: Count = 150
    dense: Count = 200

    def config(self, teacher: PretrainedConfig) -> PretrainedConfig:
        sizes = {"hidden_size": self.hidden, "dense_size": self.dense}
        return BiLSTMConfig(embedding_size=self.embedding, **sizes)


@register
@config
class CNN(_Student):
    """Convolutions of several widths over word vectors (:class:`.shallow.CNNClassifier`).

    ``filters`` of each width. Source: Kim 2014, arXiv:1408.5882.
    """

    name: ClassVar[str] = "cnn"
    any_teacher: ClassVar[bool] = True
    embedding: Count = 300
    filters: Count = 100
    widths: Annotated[Listed[Count], Field(min_length=1)] = (3, 4, 5)

    def config(self, teacher: PretrainedConfig) -> PretrainedConfig:
        sizes = {"filters": self.filters, "widths": list(self.widths)}
        return CNNConfig(embedding_size=self.embedding, **sizes)


def _sliced(name: str, weight: Tensor, shape: torch.Size, size: int, other: int) -> Tensor:
    """The first entries of a weight, of the first heads where a dimension holds heads of ``size``.

    ``other`` is the teacher's head size.
    """
    rows = any(f"attention.self.{part}." in name for part in ("query", "key", "value"))
    columns = "attention.output.dense.weight" in name
    for axis, length in enumerate(shape):
        if (rows and axis == 0) or (columns and axis == 1):
            weight = weight.unflatten(axis, (-1, other)).narrow(axis + 1, 0, size)
            weight = weight.narrow(axis, 0, length // size).flatten(axis, axis + 1)
        else:
            weight = weight.narrow(axis, 0, length)
    return weight
