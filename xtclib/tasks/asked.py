"""Which task a command is about: one that comes along, or one made of a file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from xtclib.files import unknown
from xtclib.tasks.own import KINDS, own
from xtclib.tasks.questions import questions
from xtclib.tasks.tags import tags
from xtclib.tasks.vectors import vectors

_OTHERS = {"tags": ("text", "label"), "vectors": (), "questions": ()}  # kinds, and their columns


def asked(
    task: str | None, data: str | None, names: Sequence[str] = (),
    before: Mapping[str, Any] | None = None, **given: str | None,
) -> Any:  # fmt: skip
    """What a command is about: ``task``, or the task made of ``data`` by the columns ``given``.

    ``names``: of a model's outputs, if there is one; ``before``: the columns that it remembers.
    """
    told = {name: value for name, value in given.items() if value is not None}
    kind = told.get("kind") or (before or {}).get("kind")
    if data is None:
        if told:
            raise ValueError(f"--{next(iter(told)).replace('_', '-')} is of --data: name that too")
        return task
    if task is not None:
        raise ValueError("received --task and --data, expected one of them")
    if kind not in (None, *KINDS, *_OTHERS):
        raise unknown("kind", kind, (*KINDS, *_OTHERS))
    kind = kind or ("tags" if data.endswith(".conll") else None)
    named = bool(names) and not names[0].upper().startswith("LABEL_")
    labels = names if named else None
    answers = {"kind": "number"} if len(names) == 1 else {}
    answers = answers | dict(before or {}) | told
    if kind not in _OTHERS:
        return own(data, **answers, labels=labels)
    if columns := sorted(told.keys() - {"kind", *_OTHERS[kind]}):
        why = f"--{columns[0].replace('_', '-')} names a column"
        raise ValueError(f"{why}, and rows of {kind} have none like it: leave it out")
    if kind == "vectors":
        return vectors(data)
    if kind == "questions":
        return questions(data)
    return tags(data, answers.get("text"), answers.get("label"), labels)
