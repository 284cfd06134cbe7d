"""Real sentences that come by pip: movie reviews, rated by twenty people each.

The source archive of ``vaderSentiment`` 0.5 (MIT licence) holds 10,605 sentences of movie reviews
with their mean rating from −4 to 4, and tweets, product reviews and editorials rated the same way:
Hutto and Gilbert 2014, *VADER: A Parsimonious Rule-based Model for Sentiment Analysis of Social
Media Text*, ICWSM. Two tasks: ``reviews``, positive or negative, and ``ratings``, the mean itself.
Four more take away a reason why a teacher helps, or add one: ``reviews-flipped`` (three in ten of
the training labels are wrong, the teacher's too), ``reviews-few`` (500 training rows),
``reviews-weak`` (all rows, but a teacher that saw those 500) and ``reviews-three`` (negative,
mixed, positive).

The movie reviews are those of SST as well: a model trained on one may not be scored on the other.
"""

from __future__ import annotations

import re
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

import numpy as np

from xtclib import cache
from xtclib.files import first_line, sha256
from xtclib.tasks.base import Task, TaskData, register
from xtclib.tasks.classification import Classification, Regression
from xtclib.tasks.rows import Split

ARCHIVE = "vaderSentiment==0.5"
ARCHIVE_SHA256 = "5d97c37f3ef6e24eef331122e055dbedafeb6a56abfce0608b326701116ea49a"
INNER = "vaderSentiment-0.5/additional_resources/hutto_ICWSM_2014.tar.gz"
# The rated texts by what they are, with the sha256 of their file.
FILES = {
    "movies": ("movieReviewSnippets_GroundTruth.txt",
               "c8293b0d942e90e223ea2c0955d969040d1a1be514a978b9af0698940bd13350"),
    "products": ("amazonReviewSnippets_GroundTruth.txt",
                 "11a9807a0974a2506a2d3b4851eaf69b3d6d20688ce4923adda2312a4f6dd6c2"),
    "editorials": ("nytEditorialSnippets_GroundTruth.txt",
                   "7d8fbcce7dde5d716da53e78f4ef4be6b706e9ef1e1d51887e6d0ad4b69cc27e"),
    "tweets": ("tweets_GroundTruth.txt",
               "dfbe7102e2f92579ed8b19df9a3822491880697c67adf712fb66e520cc05102f"),
}  # fmt: skip
TEST, HELD_OUT = 1600, 500  # texts, of 10,603
CLEAR = 0.5  # from where a mean rating counts as positive or negative
STRONG = 1.5  # from where it does among three classes: as many texts in each
FETCH = "fetch it by `xtc fetch` (`make setup` does)"


def folder() -> Path:
    """Where the rated texts lie, once they were fetched."""
    return cache.cache_dir() / "data" / "vader-0.5"


def fetched() -> bool:
    """Whether they are there."""
    return all((folder() / name).is_file() for name, _ in FILES.values())


def fetch() -> Path:
    """Downloads the archive by pip, as pip is set up here, and keeps its rated texts.

    pip checks the archive's sha256, and the texts are checked by theirs. Raises ``ConnectionError``
    where pip cannot get it, ``ValueError`` for one that holds other texts.
    """

    def make(place: Path) -> None:
        with tempfile.TemporaryDirectory() as download:
            _read(_download(Path(download)), place)

    cache.keep(folder(), make)
    return folder()


def _download(place: Path) -> Path:
    wanted = place / "wanted.txt"
    wanted.write_text(f"{ARCHIVE} --hash=sha256:{ARCHIVE_SHA256}\n")
    # No build isolation, which would download setuptools to read the archive's metadata.
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--require-hashes", "--no-deps",
               "--no-binary", ":all:", "--no-build-isolation", "--disable-pip-version-check",
               "--dest", str(place), "--requirement", str(wanted)]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True)
    archives = sorted(place.glob("vaderSentiment-*.zip"))
    if done.returncode or not archives:
        said = [line for line in done.stderr.splitlines() if "ERROR" in line] or ["nothing came"]
        raise ConnectionError(
            f"pip could not download {ARCHIVE} ({first_line(Exception(said[-1]))}): look at pip's "
            "index and network; until it can, generated sentences stand in (profile mini)"
        )
    return archives[0]


def _read(archive: Path, place: Path) -> None:
    """Takes the rated texts out of the archive, and nothing else."""
    if (found := sha256(archive)) != ARCHIVE_SHA256:
        raise ValueError(f"{archive.name} has sha256 {found}, expected {ARCHIVE_SHA256}")
    with zipfile.ZipFile(archive) as outer:
        content = outer.read(INNER)
    with tarfile.open(fileobj=BytesIO(content)) as inner:
        for name, wanted in FILES.values():
            member = inner.getmember(f"hutto_ICWSM_2014/{name}")
            member.name = name
            inner.extract(member, place, filter="data")
            if (found := sha256(place / name)) != wanted:
                raise ValueError(f"{name} has sha256 {found}, expected {wanted}")


def rated(source: str = "movies") -> tuple[list[str], list[float]]:
    """Texts and mean ratings, each text once; a name in ``FILES``.

    Raises ``FileNotFoundError`` where they were not fetched.
    """
    path = folder() / FILES[source][0]
    if not path.is_file():
        raise FileNotFoundError(f"the rated {source} are not at {path.parent}: {FETCH}")
    seen, texts, ratings = set[str](), list[str](), list[float]()
    for line in path.read_text(encoding="utf-8").splitlines():
        _, rating, text = line.split("\t")
        plain = re.sub(r"\W+", " ", text.lower()).strip()
        if plain not in seen:
            seen.add(plain)
            texts.append(text.strip())
            ratings.append(float(rating))
    return texts, ratings


def unlabelled() -> list[str]:
    """Tweets, product reviews and sentences of editorials: text of other kinds, unlabelled."""
    return [text for name in ("tweets", "products", "editorials") for text in rated(name)[0]]


class _Rated(Task):
    """Texts are split by one draw, before a task chooses among them: both keep the same apart."""

    source: str = "movies"

    def load(self, source: str = "movies", limit: int | None = None) -> TaskData:
        """The rows of a kind in ``FILES``: train, held-out and test for movies, else test alone."""
        texts, ratings = rated(source)
        order = np.random.default_rng(0).permutation(len(texts)).tolist()
        parts = {"test": order[:TEST], "held-out": order[TEST : TEST + HELD_OUT],
                 "train": order[TEST + HELD_OUT :]}  # fmt: skip
        if source != "movies":
            parts = dict.fromkeys(parts, order)
        found = {}
        for name, chosen in parts.items():
            rows = [i for i in chosen if self.takes(ratings[i])][:limit]
            labels = [self.label(ratings[i]) for i in rows]
            found[name] = Split([texts[i] for i in rows], None, labels)
        found["train"] = self.training(found["train"])
        counts = ", ".join(f"{len(found[name])} {name}" for name in ("train", "held-out", "test"))
        where = f"rated {source} (vaderSentiment 0.5, Hutto and Gilbert 2014): {counts} rows"
        where += self.changed
        evaluation = {"test": found["test"]}
        return TaskData(self, found["train"], evaluation, where, f"{self.title} test",
                        found["held-out"])  # fmt: skip

    def texts(self, data: TaskData) -> list[str]:
        return [*super().texts(data), *unlabelled()]

    def training(self, rows: Split) -> Split:
        """What of the training rows is learned from."""
        return rows

    @property
    def changed(self) -> str:
        """What the training rows' labels are not, in words."""
        return ""

    def takes(self, rating: float) -> bool:
        """Whether a text with this mean rating is a row."""
        return True

    def label(self, rating: float) -> int | float:
        """The label of a text with this mean rating."""
        return rating


@dataclass(frozen=True)
class _Reviews(_Rated, Classification):
    """Positive or negative, where twenty people are clear about it on the whole.

    ``flipped``: the share of training labels that are turned round; ``rows``: how many training
    rows there are, all unless told; ``teacher``: the task whose teacher teaches it, unless its own.
    """

    flipped: float = 0.0
    rows: int | None = None
    teacher: str = ""

    @property
    def changed(self) -> str:
        return f", {self.flipped:.0%} of the training labels turned round" if self.flipped else ""

    def takes(self, rating: float) -> bool:
        return abs(rating) >= CLEAR

    def label(self, rating: float) -> int:
        return int(rating > 0)

    def training(self, rows: Split) -> Split:
        chosen = rows.select(range(min(self.rows or len(rows), len(rows))))
        drawn = np.random.default_rng(0).permutation(len(chosen))
        wrong = set(drawn[: round(self.flipped * len(chosen))].tolist())
        labels = [1 - label if i in wrong else label for i, label in enumerate(chosen.labels)]
        return Split(chosen.first, None, labels)


class _Three(_Rated, Classification):
    """Negative, positive, or neither of them strongly."""

    def label(self, rating: float) -> int:
        return int(rating > -STRONG) + int(rating >= STRONG)


class _Ratings(_Rated, Regression):
    """The mean rating, from −4 to 4."""


_TWO = ("negative", "positive")
REVIEWS = _Reviews("reviews", "Reviews", _TWO)
RATINGS = _Ratings("ratings", "Ratings", primary="pearson")
_NAMES = {
    register(task).name
    for task in (
        REVIEWS,
        _Reviews("reviews-flipped", "Reviews, labels flipped", _TWO, flipped=0.3),
        _Reviews("reviews-few", "Reviews, 500 rows", _TWO, rows=500, teacher="reviews"),
        _Reviews("reviews-weak", "Reviews, weak teacher", _TWO, teacher="reviews-few"),
        _Three("reviews-three", "Reviews, three classes", ("negative", "mixed", "positive")),
        RATINGS,
    )
}


def check_apart(trained_on: Mapping[str, str], data: TaskData) -> None:
    """Raises ``ValueError`` where a model learned from the sentences that it is to be scored on.

    The movie reviews here and SST's are the same ones, split otherwise: two thirds of SST-2's dev
    rows are training rows of ``reviews``. ``trained_on``: the task and source that a model names.
    """
    sides = trained_on, {"task": data.task.name, "source": data.source}
    rated = [side.get("task") in _NAMES for side in sides]
    sst = [side.get("task") == "sst2" and "mini:" not in side.get("source", "") for side in sides]
    if (rated[0] and sst[1]) or (sst[0] and rated[1]):
        raise ValueError(
            f"it was trained on {trained_on['task']}, whose sentences are also those of "
            f"{data.task.name}: a score on them would count rows that it learned; choose its own "
            "task, or another model"
        )


def other_domains(task: Task = REVIEWS) -> dict[str, Split]:
    """The same question on tweets, products and editorials, as splits to evaluate on."""
    return {name: task.load(name).evaluation["test"] for name in FILES if name != "movies"}
