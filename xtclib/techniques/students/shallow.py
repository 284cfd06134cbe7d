"""Students that are no transformers: a bidirectional LSTM and a convolution over word vectors.

Both are ordinary ``transformers`` models: ``AutoModelForSequenceClassification`` opens them after
``import xtclib``. They have no layers to compare, so they learn from logits. A row's answer does
not depend on the padding of its batch.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
import transformers
from torch import Tensor, nn
from transformers import PretrainedConfig, PreTrainedModel
from transformers.modeling_outputs import SequenceClassifierOutput


class BiLSTMConfig(PretrainedConfig):
    """Sizes of :class:`BiLSTMClassifier`; those of the paper by default."""

    model_type = "xtc-bilstm"
    vocab_size: int = 30522
    embedding_size: int = 300
    hidden_size: int = 150
    dense_size: int = 200
    dropout: float = 0.1
    pad_token_id: int | None = 0


class CNNConfig(PretrainedConfig):
    """Sizes of :class:`CNNClassifier`; those of the paper by default."""

    model_type = "xtc-cnn"
    vocab_size: int = 30522
    embedding_size: int = 300
    filters: int = 100
    widths: tuple[int, ...] | list[int] = (3, 4, 5)
    dropout: float = 0.5
    pad_token_id: int | None = 0


class _Shallow(PreTrainedModel):
    """What both share: word vectors, and the loss on labels that ``transformers`` models give."""

    base_model_prefix = ""
    main_input_name = "input_ids"
    _input_embed_layer = "embedding"

    def _init_weights(self, module: nn.Module) -> None:
        """PyTorch's own initial weights: ``transformers``' are made for layers with LayerNorm."""

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None, labels: Tensor | None = None, **kwargs,
    ) -> SequenceClassifierOutput:  # fmt: skip
        """ids and mask (batch, length) → logits (batch, labels); segments make no difference."""
        logits, loss = self.logits_of(self.embedding(input_ids), attention_mask), None
        if labels is not None and logits.shape[-1] == 1:
            loss = F.mse_loss(logits.squeeze(-1), labels.float())
        elif labels is not None:
            loss = F.cross_entropy(logits, labels)
        return SequenceClassifierOutput(loss=loss, logits=logits)

    def logits_of(self, vectors: Tensor, mask: Tensor | None) -> Tensor:
        """Word vectors (batch, length, embedding) → logits (batch, labels)."""
        raise NotImplementedError(f"{type(self).__name__} does not say how it reads vectors")


class LastStates(nn.LSTM):
    """A bidirectional LSTM that gives its last state in each direction, of real tokens alone.

    Vectors (batch, length, inputs) and a mask (batch, length) → (batch, 2 · hidden).
    """

    def __init__(self, inputs: int, hidden: int) -> None:
        super().__init__(inputs, hidden, bidirectional=True, batch_first=True)

    def forward(self, vectors: Tensor, mask: Tensor | None = None) -> Tensor:  # type: ignore[override]
        if mask is not None and not vectors.is_meta:
            lengths = mask.sum(1).clamp(min=1).cpu()
            vectors = nn.utils.rnn.pack_padded_sequence(vectors, lengths, True, False)
        states = super().forward(vectors)[1][0]  # (2, batch, hidden)
        return torch.cat([*states], -1)


class BiLSTMClassifier(_Shallow):
    """The student of Tang et al. 2019, arXiv:1903.12136: one bidirectional LSTM of 150 units.

    Word vectors of 300 dimensions, the two last states, 200 ReLU units, logits.
    """

    config_class = BiLSTMConfig

    def __init__(self, config: BiLSTMConfig) -> None:
        super().__init__(config)
        self.embedding = nn.Embedding(config.vocab_size, config.embedding_size)
        self.lstm = LastStates(config.embedding_size, config.hidden_size)
        self.dense = nn.Linear(2 * config.hidden_size, config.dense_size)
        self.dropout = nn.Dropout(config.dropout)
        self.classifier = nn.Linear(config.dense_size, config.num_labels)
        self.post_init()

    def logits_of(self, vectors: Tensor, mask: Tensor | None) -> Tensor:
        dense = self.dense(self.lstm(vectors, mask)).relu()
        return self.classifier(self.dropout(dense))


class CNNClassifier(_Shallow):
    """Kim 2014, arXiv:1408.5882: 100 filters each of widths 3, 4 and 5 over word vectors."""

    config_class = CNNConfig

    def __init__(self, config: CNNConfig) -> None:
        super().__init__(config)
        self.embedding = nn.Embedding(config.vocab_size, config.embedding_size)
        self.filters = nn.ModuleList(
            nn.Conv1d(config.embedding_size, config.filters, width, padding=width - 1)
            for width in config.widths
        )
        self.dropout = nn.Dropout(config.dropout)
        self.classifier = nn.Linear(config.filters * len(config.widths), config.num_labels)
        self.post_init()

    def logits_of(self, vectors: Tensor, mask: Tensor | None) -> Tensor:
        if mask is not None:
            vectors = vectors * mask.unsqueeze(-1)
        found = []
        for convolution in self.filters:
            out = convolution(vectors.transpose(1, 2)).relu()  # (batch, filters, windows)
            if mask is not None:  # windows of padding alone would give the bias
                width = convolution.kernel_size[0]
                ends = mask.sum(1, keepdim=True) + width - 1
                real = torch.arange(out.shape[-1], device=out.device) < ends
                out = out * real.unsqueeze(1)  # after a ReLU 0 is the least
            found.append(out.amax(-1))
        return self.classifier(self.dropout(torch.cat(found, -1)))


for _config, _model in ((BiLSTMConfig, BiLSTMClassifier), (CNNConfig, CNNClassifier)):
    transformers.AutoConfig.register(_config.model_type, _config, exist_ok=True)
    transformers.AutoModelForSequenceClassification.register(_config, _model, exist_ok=True)
