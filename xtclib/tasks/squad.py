"""SQuAD's form and rules: questions on passages, and what counts as the same answer.

Formats v1.1 (every question has an answer; Rajpurkar et al. 2016, arXiv:1606.05250) and v2
(questions without one; Rajpurkar et al. 2018, arXiv:1806.03822).
"""

from __future__ import annotations

import json
import re
import string
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from xtclib.config import short
from xtclib.files import cut, first_line
from xtclib.tasks.rows import Split
from xtclib.tasks.tables import PARTS, dataset, is_saved

FORM = '{"data": [{"title": …, "paragraphs": [{"context": …, "qas": […]}]}]}'
_ARTICLES = re.compile(r"\b(a|an|the)\b")
_PUNCTUATION = str.maketrans("", "", string.punctuation)


def normalized(answer: str) -> str:
    """An answer as it is compared: lower case, without ASCII punctuation, articles, more spaces.

    >>> normalized("The  Saxon-Garden, a park")
    'saxongarden park'
    """
    return " ".join(_ARTICLES.sub(" ", answer.lower().translate(_PUNCTUATION)).split())


def exact(answer: str, wanted: Sequence[str]) -> float:
    """1 where the answer is one of those wanted, once normalized; of no answer the empty one is."""
    return float(normalized(answer) in {normalized(one) for one in _or_none(wanted)})


def f1(answer: str, wanted: Sequence[str]) -> float:
    """The best harmonic mean of the shares of common words, over the wanted answers.

    >>> f1("the Saxon Garden in Warsaw", ["Saxon Garden"])
    0.6666666666666666
    """
    words = normalized(answer).split()
    return max(_overlap(words, normalized(one).split()) for one in _or_none(wanted))


def _or_none(wanted: Sequence[str]) -> Sequence[str]:
    """The official rules leave out answers that are nothing but articles and punctuation."""
    return [one for one in wanted if normalized(one)] or [""]


def _overlap(words: list[str], wanted: list[str]) -> float:
    if not words or not wanted:
        return float(words == wanted)
    common = sum((Counter(words) & Counter(wanted)).values())
    return 2 * common / (len(words) + len(wanted))


def scores(answers: Sequence[str], wanted: Sequence[Sequence[str]]) -> dict[str, float]:
    """``exact`` and ``f1`` in percent over questions; with some that have no answer also apart."""
    one_each = list(zip(answers, wanted, strict=True))
    groups = {"": one_each}
    if not all(w for _, w in one_each):
        groups |= {" (answered)": [p for p in one_each if p[1]],
                   " (unanswered)": [p for p in one_each if not p[1]]}  # fmt: skip
    rules = {"exact": exact, "f1": f1}
    return {
        f"{name}{group}": 100 * sum(rule(a, w) for a, w in pairs) / len(pairs)
        for group, pairs in groups.items() if pairs for name, rule in rules.items()
    }  # fmt: skip


def read_questions(source: str | Path) -> dict[str, Split]:
    """The parts of a ``.json`` file, a folder with ``train….json`` and perhaps others, or a Hub id.

    A file is called by its first word: ``train-v1.1.json``, ``dev.json``. A row is a question, its
    passage, and as label ``{id, article, passage, texts, starts}``. Raises ``FileNotFoundError``,
    and ``ValueError``, with file, article and id, for what is not in SQuAD's form.
    """
    path = Path(source).expanduser()
    if path.is_file():
        return {"train": _split(_file(path))}
    if path.is_dir() and not is_saved(path):
        found = {part: f for f in sorted(path.glob("*.json")) if (part := _part(f))}
        if "train" not in found:
            raise ValueError(f"no train….json in {path}: expected one, perhaps beside dev….json")
        return {part: _split(_file(file)) for part, file in found.items()}
    held = dataset(source)
    parts = held if isinstance(held, dict) else {"train": held}
    found = {PARTS[part]: rows for part, rows in parts.items() if part in PARTS}
    if "train" not in found:
        raise ValueError(f"'{source}' has no part called train, received {', '.join(parts)}")
    return {part: _split(_rows(rows, f"{source}, {part}")) for part, rows in found.items()}


def _part(file: Path) -> str | None:
    words = re.split(r"[^a-z]+", file.stem.lower())
    return next((PARTS[word] for word in words if word in PARTS), None)


def _split(rows: Iterable[tuple[str, dict[str, Any]]]) -> Split:
    found = list(rows)
    passages = [label["passage"] for _, label in found]
    return Split([question for question, _ in found], passages, [label for _, label in found])


def _file(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    try:
        held = json.loads(path.read_text(encoding="utf-8-sig"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path.name} is no JSON ({first_line(error)}): expected {FORM}") from None
    articles = held.get("data") if isinstance(held, dict) else None
    if not isinstance(articles, list) or not articles:
        raise ValueError(f"{path.name} holds {short(held)}: expected {FORM}")
    count = 0
    for number, article in enumerate(articles, 1):
        where = f"{path.name}, article {number}"
        title = article.get("title", str(number)) if isinstance(article, dict) else None
        for paragraph in _list(article, "paragraphs", where):
            passage = paragraph.get("context") if isinstance(paragraph, dict) else None
            for asked in _list(paragraph, "qas", where):
                count += 1
                yield _row(asked, passage, str(title), where)
    if not count:
        raise ValueError(f"{path.name} has no questions: expected {FORM}")


def _list(value: object, name: str, where: str) -> list:
    found = value.get(name) if isinstance(value, dict) else None
    if not isinstance(found, list):
        raise ValueError(f"{where}: received {name}={short(found)}, expected a list: {FORM}")
    return found


def _row(asked: Any, passage: Any, title: str, where: str) -> tuple[str, dict[str, Any]]:
    question = asked.get("question") if isinstance(asked, dict) else None
    if not isinstance(question, str) or not question.strip():
        raise ValueError(f"{where}: received {short(asked)}, expected a question")
    where = f"{where}, question {short(asked.get('id', cut(question, 40)))}"
    if not isinstance(passage, str) or not passage.strip():
        raise ValueError(f"{where}: its context is {short(passage)}, expected a text")
    given = asked.get("answers")
    none = asked.get("is_impossible") is True
    if not isinstance(given, list) or not (given or none):
        expected = "expected a list of {text, answer_start}, or is_impossible: true"
        raise ValueError(f"{where}: received answers={short(given)}, {expected}")
    texts, starts = [], []
    for answer in [] if none else given:
        text = answer.get("text") if isinstance(answer, dict) else None
        start = answer.get("answer_start") if isinstance(answer, dict) else None
        if not isinstance(text, str) or not text or type(start) is not int or start < 0:
            expected = "expected {text, answer_start}"
            raise ValueError(f"{where}: received the answer {short(answer)}, {expected}")
        if (there := passage[start : start + len(text)]) != text:
            says = f"the context has {short(there)} at {start}, its answer is {short(text)}"
            raise ValueError(f"{where}: {says}: mend answer_start")
        texts.append(text)
        starts.append(start)
    label = {"id": str(asked.get("id", "")), "article": title, "passage": passage,
             "texts": texts, "starts": starts}  # fmt: skip
    return question.strip(), label


def _rows(rows: Any, where: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """The rows of a dataset with SQuAD's columns."""
    if lacks := {"question", "context", "answers"} - set(rows.column_names):
        has = ", ".join(rows.column_names)
        raise ValueError(f"{where} has no column {min(lacks)!r} as SQuAD has, it has {has}")
    for row in rows:
        pairs = zip(row["answers"]["text"], row["answers"]["answer_start"], strict=True)
        given = [{"text": text, "answer_start": start} for text, start in pairs]
        asked = {**row, "answers": given, "is_impossible": not given}
        yield _row(asked, row["context"], str(row.get("title", "")), where)
