"""A vector for every text, by which like texts are found: what a sentence encoder gives.

There are no labels: a student learns the vectors of its teacher, the encoder itself, on any text
(Reimers and Gurevych 2020, arXiv:2004.09813, section 2), and is judged by how far it finds like
texts as its teacher does.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import AutoModel, AutoTokenizer, PreTrainedModel
from transformers import PreTrainedTokenizerBase as Tokenizer

from xtclib.bert import read_config, text_vectors
from xtclib.files import sha256
from xtclib.tasks.base import Task, TaskData, own_name
from xtclib.tasks.evaluation import answers
from xtclib.tasks.masked import split_texts, unlabelled
from xtclib.tasks.rows import Rows, Split

_UNLABELLED = (
    "vectors have no labels to learn from: take a recipe that learns from its teacher, as xtc-1bit "
    "does"
)


@dataclass(frozen=True)
class Vectors(Task):
    """A vector of length one for every text: the mean of its tokens' last states.

    Scored on texts kept apart, against the teacher's vectors: ``spearman`` of the cosines of all
    pairs, ``top-1`` and ``top-10``, the share of a text's nearest others that are the teacher's
    too, and ``cosine``, the mean one between a text's two vectors, all in percent. On pairs that
    people rated (``rated``), ``spearman`` of the cosines and the ratings.

    ``teacher_path``: the encoder whose vectors are learned; ``known``: its vectors of the texts.
    """

    name: str = "vectors"
    title: str = "Vectors"
    source: str = ""
    teacher_path: str = ""
    rated: str = ""
    judge: str = ""
    labels: tuple[str, ...] = ()
    primary: str = "spearman"
    known: np.ndarray | None = field(default=None, repr=False, compare=False)
    model_class: ClassVar[Any] = AutoModel
    heads: ClassVar[tuple[str, ...]] = ()
    tunes: ClassVar[bool] = False

    def load(self, source: str, limit: int | None = None) -> TaskData:
        """The texts of a .txt file or a folder of them; some kept apart, with their vectors."""
        texts = list(dict.fromkeys(unlabelled(source)))
        if len(texts) < 20:
            raise ValueError(f"{source} has {len(texts)} different texts, expected 20 or more")
        rest, apart = (some[:limit] for some in split_texts(texts, max(0.1, 10 / len(texts))))
        train = Split(rest, None, [0] * len(rest))
        splits = {"apart": Split(apart, None, list(range(len(apart))))}
        where = f"{Path(source).name}: {len(train)} train texts, {len(apart)} apart"
        if self.rated:
            splits["rated"] = _rated(Path(self.rated))
            where += f", {len(splits['rated'])} rated pairs"
        weights = sorted(Path(self.teacher_path).glob("model*.safetensors"))
        judge = sha256(weights[0]) if weights else self.teacher_path
        judged = replace(self, known=encode(self.teacher_path, apart), judge=judge)
        return TaskData(judged, train, splits, where, "Vectors")

    def taught_by(self, path: str | Path) -> Vectors:
        return self if self.teacher_path else replace(self, teacher_path=str(path))

    @property
    def details(self) -> dict[str, Any]:
        return {"own": {"kind": "vectors"}}

    def load_model(self, path: str | Path, seed: int = 0, **options: Any) -> PreTrainedModel:
        """An encoder without a head, from a folder or Hub id."""
        read_config(path)
        torch.manual_seed(seed)
        return AutoModel.from_pretrained(
            path, dtype=torch.float32, trust_remote_code=False, use_safetensors=True, **options
        )

    def tokenize(self, split: Split, tokenizer: Tokenizer, max_length: int) -> Rows:
        """Token ids; of a pair both texts, one after the other."""
        both = zip(split.first, split.second or split.first, strict=True)
        texts = split.first if split.second is None else [text for pair in both for text in pair]
        return super().tokenize(Split(texts, None, [0] * len(texts)), tokenizer, max_length)

    def logits(self, output, mask: Tensor) -> Tensor:
        """Vectors of length one, (batch, width); an exported file gives them itself."""
        given = getattr(output, "logits", None)
        return text_vectors(output.last_hidden_state, mask) if given is None else given

    def loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        raise ValueError(_UNLABELLED)

    def compare(self, student: Tensor, teacher: Tensor, loss=None) -> Tensor:
        """``mean ‖s − t‖² = 2 − 2·cos(s, t)`` over the batch, whatever the objective takes."""
        return F.mse_loss(student, teacher) * student.shape[-1]

    def decide(self, logits: np.ndarray, batch: dict[str, Tensor]) -> np.ndarray:
        return logits

    def score(self, answers: Sequence[Any], references: Sequence[Any]) -> dict[str, float]:
        from scipy.stats import spearmanr

        found = np.stack(answers)
        if len(found) == 2 * len(references):  # pairs that people rated
            cosines = (found[::2] * found[1::2]).sum(-1)
            value = 100 * float(spearmanr(cosines, references).statistic)
            return {"spearman": value, "score": value}
        if self.known is None:
            raise ValueError("the teacher's vectors are not there: load the task's rows first")
        wanted = self.known[list(references)]
        ours, theirs = (_cosines(vectors) for vectors in (found, wanted))
        above = np.triu_indices(len(found), 1)
        value = 100 * float(spearmanr(ours[above], theirs[above]).statistic)
        near = {f"top-{k}": 100 * _kept(ours, theirs, k) for k in (1, 10)}
        cosine = 100 * float((found * wanted).sum(-1).mean())
        return {"spearman": value, **near, "cosine": cosine, "score": value}

    def majority(self, split: Split, train: Split | None = None) -> dict[str, float]:
        """Of one vector for all texts no cosine says anything: 0."""
        return {"spearman": 0.0, "score": 0.0}

    def check_labels(self, path: str | Path, labels: Sequence[str]) -> None:
        """Any: an encoder has none."""

    def check(self, objective, student: PreTrainedModel, teacher: PreTrainedModel) -> None:
        if objective.labels:
            raise ValueError(_UNLABELLED)
        if objective.logits and student.config.hidden_size != teacher.config.hidden_size:
            widths = f"{student.config.hidden_size} and its teacher's {teacher.config.hidden_size}"
            raise ValueError(f"the student's vectors are {widths} wide: take one as wide")
        objective.check(student, teacher, answers=False)


def vectors(source: str | Path, teacher: str | Path = "", rated: str | Path = "") -> Vectors:
    """The task of learning an encoder's vectors on a text file, or a folder of them.

    ``teacher``: the encoder, MiniLM unless told; ``rated``: a file of tab-separated pairs, two
    texts and a number in the last three columns, as STS-B's are.
    """
    return Vectors(own_name(source), Path(source).stem, str(source), str(teacher),
                   str(rated))  # fmt: skip


def encode(path: str | Path, texts: Sequence[str], max_length: int = 256) -> np.ndarray:
    """The vectors (texts, width) that a saved encoder gives, as :class:`Vectors` reads them."""
    task, rows = Vectors(), Split(list(texts), None, [0] * len(texts))
    tokenizer = AutoTokenizer.from_pretrained(path, trust_remote_code=False)
    return np.stack(answers(task.load_model(path), tokenizer, task, rows, max_length))


def _cosines(vectors: np.ndarray) -> np.ndarray:
    return vectors @ vectors.T


def _kept(ours: np.ndarray, theirs: np.ndarray, count: int) -> float:
    """The share of each text's ``count`` nearest others that are so by both."""
    count = min(count, len(ours) - 1)
    near = []
    for cosines in (ours, theirs):
        alone = cosines - 3 * np.eye(len(cosines))  # nearest to itself, which says nothing
        near.append(np.argsort(-alone, kind="stable")[:, :count])
    shared = [len(set(a) & set(b)) for a, b in zip(*map(np.ndarray.tolist, near), strict=True)]
    return sum(shared) / (count * len(ours))


def _rated(path: Path) -> Split:
    """Pairs with a number: the last three columns of a tab-separated file with a header."""
    rows = [line.split("\t")[-3:] for line in path.read_text(encoding="utf-8").splitlines()[1:]]
    try:
        return Split([a for a, _, _ in rows], [b for _, b, _ in rows], [float(x) for *_, x in rows])
    except ValueError:
        says = "expected two texts and a number in the last three columns"
        raise ValueError(f"{path}: {says} of each line") from None
