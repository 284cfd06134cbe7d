"""Distillation losses and layer maps, as pure functions of tensors.

Each loss compares a student with a teacher and is 0 where they agree (soft cross-entropy: the
teacher's entropy). Padding is masked by default; ``mask=None`` gives the XTC release's form, which
averages over padded positions too. Sums and means are told in every formula; what a release divides
by besides is an option named after it: ``per_class``, ``per_dimension``, ``per_token``.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def _same_shape(student: Tensor, teacher: Tensor, what: str, temperature: float = 1.0) -> None:
    if student.shape != teacher.shape:
        gives = f"the student gives {tuple(student.shape)} and the teacher {tuple(teacher.shape)}"
        raise ValueError(f"{what}: {gives}; they must agree (else add a projection)")
    if not temperature > 0:
        raise ValueError(f"temperature must be positive, received {temperature}")


def soft_cross_entropy(
    student: Tensor, teacher: Tensor, temperature: float = 1.0, per_class: bool = False
) -> Tensor:
    """Cross-entropy of the student's logits under the teacher's softened probabilities.

    ``−(1/B) Σ_b Σ_c softmax(t/T)_bc · log softmax(s/T)_bc``; logits of shape (batch, classes).
    ``per_class=True`` divides by the number of classes too, as XTC's and TernaryBERT's releases do.
    Source: Hinton et al. 2015, arXiv:1503.02531, section 2; XTC, arXiv:2206.01859, section 2.

    >>> round(float(soft_cross_entropy(torch.zeros(1, 2), torch.zeros(1, 2))), 4)   # ln 2
    0.6931
    """
    _same_shape(student, teacher, "logits", temperature)
    loss = -(F.softmax(teacher / temperature, -1) * F.log_softmax(student / temperature, -1))
    return loss.mean() if per_class else loss.sum(-1).mean()


def kl_divergence(
    student: Tensor, teacher: Tensor, temperature: float = 1.0, per_class: bool = False
) -> Tensor:
    """``T²/B · Σ_b KL(softmax(t/T)_b ‖ softmax(s/T)_b)``; logits of shape (batch, classes).

    ``T²`` keeps the gradient's size independent of the temperature (Hinton et al. 2015, section
    2.1: for large T the gradient tends to that of ``‖s − t‖² / 2`` on centred logits, by class).
    ``per_class=True`` divides by the number of classes too, as PKD's release does.

    >>> float(kl_divergence(torch.tensor([[1.0, 2.0]]), torch.tensor([[1.0, 2.0]]), 3.0))
    0.0
    """
    _same_shape(student, teacher, "logits", temperature)
    s, t = (F.log_softmax(x / temperature, -1) for x in (student, teacher))
    loss = F.kl_div(s, t, reduction="batchmean", log_target=True) * temperature**2
    return loss / student.shape[-1] if per_class else loss


def bernoulli_cross_entropy(
    student: Tensor, teacher: Tensor, temperature: float = 1.0, per_class: bool = False
) -> Tensor:
    """Soft cross-entropy where several classes may hold at once: a sigmoid for each.

    ``−(1/B) Σ_b Σ_c [p·log q + (1 − p)·log(1 − q)]`` with ``p = σ(t_bc/T)``, ``q = σ(s_bc/T)``;
    logits of shape (batch, classes). ``per_class=True`` divides by the number of classes too. It
    is :func:`soft_cross_entropy` over yes and no, whose logits are ``(s_bc, 0)``, summed over c.

    >>> round(float(bernoulli_cross_entropy(torch.zeros(1, 2), torch.zeros(1, 2))), 4)   # 2 ln 2
    1.3863
    """
    _same_shape(student, teacher, "logits", temperature)
    loss = F.binary_cross_entropy_with_logits(
        student / temperature, (teacher / temperature).sigmoid(), reduction="sum"
    )
    return loss / (student.numel() if per_class else len(student))


def bernoulli_divergence(
    student: Tensor, teacher: Tensor, temperature: float = 1.0, per_class: bool = False
) -> Tensor:
    """``T²/B · Σ_b Σ_c KL(σ(t_bc/T) ‖ σ(s_bc/T))``, of yes against no for each class.

    The divergence of several independent answers is the sum of theirs; otherwise as
    :func:`kl_divergence`, from whose logits ``(s_bc, 0)`` it comes.

    >>> float(bernoulli_divergence(torch.tensor([[1.0, -2.0]]), torch.tensor([[1.0, -2.0]]), 3.0))
    0.0
    """
    _same_shape(student, teacher, "logits", temperature)
    yes_no = [torch.stack((x, torch.zeros_like(x)), -1).flatten(0, 1) for x in (student, teacher)]
    loss = kl_divergence(yes_no[0], yes_no[1], temperature)  # the mean over rows and classes
    return loss if per_class else loss * student.shape[-1]


def logits_mse(student: Tensor, teacher: Tensor, per_class: bool = False) -> Tensor:
    """``(1/B) Σ_b ‖s_b − t_b‖²`` over logits of shape (batch, classes).

    The limit of distillation at high temperature; ``per_class=True`` is the mean over classes.
    Source: Ba & Caruana 2014, arXiv:1312.6184, equation 2; for a BiLSTM that learns from BERT, Tang
    et al. 2019, arXiv:1903.12136, section 3.2.

    >>> float(logits_mse(torch.tensor([[1.0, 2.0]]), torch.tensor([[0.0, 0.0]])))
    5.0
    """
    _same_shape(student, teacher, "logits")
    loss = F.mse_loss(student, teacher, reduction="sum") / len(student)
    return loss / student.shape[-1] if per_class else loss


def hidden_mse(student: Tensor, teacher: Tensor, mask: Tensor | None = None) -> Tensor:
    """Mean squared error of hidden states of shape (batch, length, width) over real tokens.

    ``mask`` of shape (batch, length), 1 at real tokens; ``None`` averages over padding as well.
    Source: TinyBERT, arXiv:1909.10351, eq. 8, without a projection; XTC uses the same.

    >>> s, t = torch.zeros(1, 2, 4), torch.ones(1, 2, 4); t[:, 1] = 9
    >>> float(hidden_mse(s, t, torch.tensor([[1, 0]]))), float(hidden_mse(s, t))
    (1.0, 41.0)
    """
    _same_shape(student, teacher, "hidden states")
    if mask is None:
        return F.mse_loss(student, teacher)
    real = mask.bool().unsqueeze(-1)
    return _sum_of_squares(student, teacher, real) / (mask.sum() * student.shape[-1])


def attention_mse(student: Tensor, teacher: Tensor, mask: Tensor | None = None) -> Tensor:
    """Mean squared error of attention scores of shape (batch, heads, length, length).

    Scores are before the softmax, after ``1/√d``. With ``mask`` (batch, length) only pairs of real
    query and real key count. ``None``: every pair, as the releases, whose masked scores are close
    to equal in student and teacher. Source: TinyBERT, arXiv:1909.10351, eq. 7.

    >>> s, t = torch.zeros(1, 1, 2, 2), torch.tensor([[[[2.0, 7.0], [7.0, 7.0]]]])
    >>> float(attention_mse(s, t, torch.tensor([[1, 0]])))
    4.0
    """
    _same_shape(student, teacher, "attention scores")
    if mask is None:
        return F.mse_loss(student, teacher)
    real = mask.bool()
    pairs = (real.unsqueeze(2) & real.unsqueeze(1)).unsqueeze(1)  # (batch, 1, query, key)
    return _sum_of_squares(student, teacher, pairs) / (pairs.sum() * student.shape[1])


def attention_divergence(
    student: Tensor, teacher: Tensor, mask: Tensor | None = None, per_token: bool = False
) -> Tensor:
    """``(1/B) Σ_b 1/(A·|x_b|) Σ KL(softmax(t) ‖ softmax(s))`` over A heads and |x_b| real queries.

    Scores of shape (batch, heads, length, length). With ``mask`` (batch, length) keys that are
    padding get no probability and queries that are padding do not count. ``per_token=True`` is
    the mean over the batch's queries instead, where a long sequence weighs more. Over all layers it
    is MobileBERT's attention transfer (arXiv:2004.02984, equation 3), over the last one MiniLM's
    (arXiv:2002.10957, equation 6).

    >>> t = torch.tensor([[[[0.0, 0.0], [0.0, 0.0]]]])
    >>> round(float(attention_divergence(torch.tensor([[[[1.0, 0.0], [1.0, 0.0]]]]), t)), 4)
    0.1201
    """
    _same_shape(student, teacher, "attention scores")
    return _divergence(student, teacher, mask, per_token)


def attention_probability_mse(
    student: Tensor, teacher: Tensor, mask: Tensor | None = None
) -> Tensor:
    """Mean squared error of ``softmax`` of attention scores (batch, heads, length, length).

    Over pairs of real query and real key. TinyBERT compares scores instead, which train faster
    (arXiv:1909.10351, section 3.1): a hopeless key's probability is 0 however hopeless it is.

    >>> float(attention_probability_mse(torch.zeros(1, 1, 2, 2), torch.ones(1, 1, 2, 2)))
    0.0
    """
    _same_shape(student, teacher, "attention scores")
    return attention_mse(_over_keys(student, mask), _over_keys(teacher, mask), mask)


def relation_divergence(
    student: Tensor, teacher: Tensor, mask: Tensor | None = None, heads: int = 12,
    per_token: bool = False,
) -> Tensor:  # fmt: skip
    """``(1/B) Σ_b 1/(A·|x_b|) Σ KL(R_t ‖ R_s)`` with ``R = softmax(X·Xᵀ/√d)``; widths may differ.

    X, the queries, keys or values of one layer, of shape (batch, length, width), is split anew
    into A = ``heads`` relation heads of d = width/heads; each sequence's real tokens x_b are
    averaged first, or all of the batch at once with ``per_token``. Source: MiniLMv2,
    arXiv:2012.15828, equations 4 to 6; with the model's own heads and values alone, MiniLM,
    arXiv:2002.10957, equation 8.
    Raises ``ValueError`` unless the heads divide both widths.

    >>> x = torch.randn(2, 3, 8)
    >>> float(relation_divergence(x, x, heads=4))
    0.0
    """
    relations = []
    for whose, x in (("student's", student), ("teacher's", teacher)):
        check_relation_heads(x.shape[-1], heads, whose)
        x = x.unflatten(-1, (heads, -1)).transpose(1, 2)  # (batch, heads, length, width/heads)
        relations.append(x @ x.transpose(-1, -2) / x.shape[-1] ** 0.5)
    return _divergence(relations[0], relations[1], mask, per_token)


def check_relation_heads(width: int, heads: int, whose: str) -> None:
    """Raises ``ValueError`` unless ``heads`` relation heads divide a width."""
    if not isinstance(heads, int) or isinstance(heads, bool) or heads < 1:
        raise ValueError(f"relation heads are a whole number from 1, received {heads!r}")
    if width % heads:
        uneven = f"{heads} relation heads do not divide the {whose} width of {width}"
        raise ValueError(f"{uneven}: choose a number that divides both widths")


def patience(
    student: Tensor, teacher: Tensor, mask: Tensor | None = None, per_dimension: bool = False
) -> Tensor:
    """``(1/B) Σ_b ‖h_s/‖h_s‖ − h_t/‖h_t‖‖²`` of the first token's hidden state, for one layer.

    Hidden states of shape (batch, length, width); the mask changes nothing, since the first token
    is always real. The paper sums layers (PKD, arXiv:1908.09355, equation 7); its release takes the
    mean over layers and dimensions: ``per_dimension``, and the term's ``per_layer``.

    >>> float(patience(torch.tensor([[[1.0, 0.0]]]), torch.tensor([[[0.0, 5.0]]])))
    2.0
    """
    _same_shape(student, teacher, "hidden states")
    s, t = (F.normalize(x[:, 0].float(), dim=-1) for x in (student, teacher))
    loss = F.mse_loss(s, t, reduction="sum") / len(s)
    return loss / s.shape[-1] if per_dimension else loss


def hidden_cosine(student: Tensor, teacher: Tensor, mask: Tensor | None = None) -> Tensor:
    """Mean ``1 − cos(h_s, h_t)`` over real tokens of hidden states (batch, length, width).

    Source: DistilBERT, arXiv:1910.01108, section 2: on the last hidden state.

    >>> float(hidden_cosine(torch.tensor([[[1.0, 0.0]]]), torch.tensor([[[0.0, 5.0]]])))
    1.0
    """
    _same_shape(student, teacher, "hidden states")
    apart = 1 - torch.cosine_similarity(student, teacher, dim=-1).float()
    return apart.mean() if mask is None else (apart * mask).sum() / mask.sum()


def _over_keys(scores: Tensor, mask: Tensor | None, log: bool = False) -> Tensor:
    """Softmax over the real keys of scores (batch, heads, query, key), in fp32."""
    scores = scores.float()
    if mask is not None:
        lowest = torch.finfo(scores.dtype).min
        scores = scores.masked_fill(~mask.bool()[:, None, None], lowest)
    return F.log_softmax(scores, -1) if log else F.softmax(scores, -1)


def _divergence(student: Tensor, teacher: Tensor, mask: Tensor | None, per_token: bool) -> Tensor:
    """The divergence of softmaxed scores: mean over heads and real queries, then sequences."""
    s, t = (_over_keys(x, mask, log=True) for x in (student, teacher))
    each = torch.linalg.vecdot(t.exp(), t - s)  # (batch, heads, query), in two passes
    if mask is None:
        return each.mean()
    of_sequence = (each * mask.unsqueeze(1)).sum((1, 2)) / each.shape[1]
    if per_token:
        return of_sequence.sum() / mask.sum()
    return (of_sequence / mask.sum(1).clamp(min=1)).mean()


def _sum_of_squares(student: Tensor, teacher: Tensor, real: Tensor) -> Tensor:
    """``Σ (student − teacher)²`` where ``real``.

    Setting the target to the student elsewhere keeps it at four passes over the tensor, forward
    and backward together; multiplying by the mask would take eight.
    """
    target = torch.where(real, teacher, student.detach())
    return F.mse_loss(student, target, reduction="sum").float()


def layer_map(
    student_layers: int, teacher_layers: int, kind: str = "uniform", kept: list[int] | None = None
) -> list[int]:
    """Which teacher hidden state each student hidden state learns from; entry 0 is the embeddings.

    - ``uniform``: ``round(i·T/S)``: embeddings to embeddings, last to last.
    - ``last``: the student's layers learn from the teacher's last ones.
    - ``release``: XTC's release. Of a student that was cut out of its teacher, with the 0-based
      layers ``kept`` k: ``[k₀−1, k₀+1, k₁+1, …]``. So for 2, 4, 6, 8, 10 of 12 the student's
      *embeddings* follow teacher layer 1 and layer 12 is never used, and a student that keeps
      layer 0 gets −1, which in the release's list of states is the *last* one. Of any other
      student: ``i·⌊T/S⌋``.

    >>> layer_map(6, 12), layer_map(5, 12)
    ([0, 2, 4, 6, 8, 10, 12], [0, 2, 5, 7, 10, 12])
    >>> layer_map(5, 12, "release", kept=[2, 4, 6, 8, 10])
    [1, 3, 5, 7, 9, 11]

    Raises ``ValueError`` if the student is deeper than the teacher or the kind is unknown.
    """
    if not 1 <= student_layers <= teacher_layers:
        found = f"a student of {student_layers} layers cannot follow a teacher of {teacher_layers}"
        raise ValueError(f"{found}: it needs from one layer to as many")
    steps = range(student_layers + 1)
    if kind == "uniform":
        # ⌊x + ½⌋ rather than Python's round, which would send halves to the even neighbour.
        return [(2 * i * teacher_layers + student_layers) // (2 * student_layers) for i in steps]
    if kind == "last":
        return [0, *range(teacher_layers - student_layers + 1, teacher_layers + 1)]
    if kind == "release":
        if kept is None:
            return [i * (teacher_layers // student_layers) for i in steps]
        if len(kept) != student_layers:
            raise ValueError(f"{len(kept)} layers were kept, but the student has {student_layers}")
        return [kept[0] - 1, *(k + 1 for k in kept)]
    raise ValueError(f"unknown layer map {kind!r}: choose 'uniform', 'last' or 'release'")
