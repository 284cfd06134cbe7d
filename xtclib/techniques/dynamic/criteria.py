"""How sure an exit is of a row: what decides whether it leaves there.

Every criterion is a number for each row, and a row leaves where it is above a bar; what a paper
calls its threshold is turned into that bar by :func:`bar_of`.
"""

from __future__ import annotations

import math
from typing import Literal, get_args

import torch
from torch import Tensor

Criterion = Literal["entropy", "probability", "patience", "learned"]
CRITERIA = get_args(Criterion)
NUMBERS = "patience", "learned"  # those that a regression has
ENDS = {"never": math.inf, "always": -math.inf}


def bar_of(criterion: Criterion, threshold: float | str) -> float:
    """The bar that ``sure`` has to be above, for a threshold in the criterion's own terms.

    Entropy leaves *below* its threshold (a share of the largest possible, 0 to 1), probability and
    a learned certainty above theirs (0 to 1), patience at so many equal answers.

    >>> bar_of("entropy", 0.25), bar_of("patience", 2), bar_of("learned", "never")
    (0.75, 1.5, inf)
    """
    if isinstance(threshold, str):
        return ENDS[threshold]
    return {"entropy": 1 - threshold, "patience": threshold - 0.5}.get(criterion, threshold)


def entropy(logits: Tensor, independent: bool = False) -> Tensor:
    """How evenly a row's classes are likely: 0 for one alone, 1 for all alike; (…, C) → (…).

    ``H = −Σ p·ln p / ln C``, FastBERT's uncertainty (arXiv:2004.02178, equation 7); DeeBERT's
    (arXiv:2004.12993, section 3) is the same without the division. ``independent``: classes that
    may hold at once, of each its own two-way entropy, and their mean.

    >>> entropy(torch.tensor([[0.0, 0.0], [0.0, 5.0]]))
    tensor([1.0000, 0.0580])
    """
    p = _probabilities(logits, independent)
    found = torch.special.entr(p).sum(-1) / math.log(p.shape[-1])
    return found.mean(-1) if independent else found


def probability(logits: Tensor, independent: bool = False) -> Tensor:
    """The likeliest class's probability, (…, C) → (…); of independent classes the least sure one's.

    >>> probability(torch.tensor([[0.0, 0.0, 0.0]]))
    tensor([0.3333])
    """
    found = _probabilities(logits, independent).amax(-1)
    return found.amin(-1) if independent else found


def _probabilities(logits: Tensor, independent: bool) -> Tensor:
    if independent:
        return torch.stack([logits, -logits], -1).sigmoid()
    return logits.softmax(-1)


def agrees(logits: Tensor, before: Tensor, kind: str = "", tolerance: float = 0.5) -> Tensor:
    """Whether two exits in a row answer alike, (batch, C) → (batch): PABEE, arXiv:2006.04152.

    The same class; the same set of them where ``kind`` is ``multi_label_classification``; for
    ``regression`` a number within ``tolerance``.

    >>> agrees(torch.tensor([[0.2, 0.1]]), torch.tensor([[3.0, 1.0]]))
    tensor([True])
    """
    if kind == "regression":
        return (logits - before).abs().amax(-1) < tolerance
    if kind == "multi_label_classification":
        return ((logits > 0) == (before > 0)).all(-1)
    return logits.argmax(-1) == before.argmax(-1)


def right(logits: Tensor, labels: Tensor, kind: str = "") -> Tensor:
    """What a learned certainty is taught, (batch, C) → (batch): 1 where the exit's answer is right.

    For ``regression`` ``1 − tanh |ŷ − y|``. Source: BERxiT, Xin et al. 2021, section 4.3.

    >>> right(torch.tensor([[2.0, 1.0], [0.0, 1.0]]), torch.tensor([0, 0]))
    tensor([1., 0.])
    """
    if kind == "regression":
        return 1 - (logits.squeeze(-1) - labels).abs().tanh()
    if kind == "multi_label_classification":
        return ((logits > 0) == labels.bool()).all(-1).float()
    return (logits.argmax(-1) == labels).float()


class Judge:
    """How sure an exit is of each row of a batch; patience remembers what was answered before.

    >>> judge = Judge("patience")
    >>> [judge.sure(torch.tensor([[answer, 1.0]])).item() for answer in (0.0, 2.0, 3.0, 0.0)]
    [0.0, 0.0, 1.0, 0.0]
    """

    def __init__(self, criterion: Criterion, kind: str = "", tolerance: float = 0.5) -> None:
        self.criterion, self.kind, self.tolerance = criterion, kind, tolerance
        self._before: Tensor | None = None
        self._equal: Tensor | None = None  # answers alike in a row, after the first

    def sure(self, logits: Tensor, certainty: Tensor | None = None) -> Tensor:
        """From an exit's logits (batch, labels), and where it is learned its certainty (batch,)."""
        several = self.kind == "multi_label_classification"
        if self.criterion == "entropy":
            return 1 - entropy(logits, several)
        if self.criterion == "probability":
            return probability(logits, several)
        if certainty is not None:
            return certainty
        equal = logits.new_zeros(len(logits))
        if self._before is not None and self._equal is not None:
            alike = agrees(logits, self._before, self.kind, self.tolerance)
            equal = (self._equal + 1) * alike
        self._before, self._equal = logits, equal
        return equal

    def keep(self, rows: Tensor) -> None:
        """Only these rows of the batch go on."""
        if self._before is not None and self._equal is not None:
            self._before, self._equal = self._before[rows], self._equal[rows]
