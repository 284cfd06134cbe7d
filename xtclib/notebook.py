"""What a notebook holds itself and its reader to: claims about its values, and exercises.

The exercises' answers and tests are in ``notebooks/exercises.py``, out of a reader's sight.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from functools import cache
from types import ModuleType

from xtclib.cache import ROOT

DEFAULTS = {"TASK": None, "SEED": 0, "BUDGET": "A", "LIVE": None, "ROWS": 200, "GLUE_DIR": None}


def claims(profile: str, **parameters: object) -> Callable[..., None]:
    """The ``claim(holds, words, about=None)`` of a notebook that runs in ``profile``.

    A claim says of the values above it what the text says; where it does not hold it raises
    `AssertionError`. ``about`` names the profiles it speaks of, parted by spaces; such a claim
    is about the notebook's own ``parameters`` too, and elsewhere it prints one line.

    >>> claim = claims("smoke", TASK=None)
    >>> claim(1 < 2, "one is less than two")
    >>> claim(1 > 2, "a trained student is ahead", "reviews")
    (said of reviews, not of smoke: a trained student is ahead)
    """
    changed = [f"{name} = {v!r}" for name, v in parameters.items() if v != DEFAULTS[name]]
    here = ", ".join([profile, *changed])

    def claim(holds: bool, words: str, about: str | None = None) -> None:
        if about and (changed or profile not in about.split()):
            print(f"(said of {about}, not of {here}: {words})")
        elif not holds:
            raise AssertionError(f"the text says: {words}; here ({here}) it does not hold")

    return claim


def check(name: str, answer: object) -> None:
    """Print whether an answer to the exercise ``name`` is right, and never the right one.

    ``answer``: a number, a list, a word, or a function that is then tested; `None` is no answer.
    """
    print("not yet: set it above" if answer is None else _exercises().verdict(name, answer))


@cache
def _exercises() -> ModuleType:
    path = ROOT / "notebooks" / "exercises.py"
    spec = importlib.util.spec_from_file_location("exercises", path)
    if spec is None or spec.loader is None:
        raise FileNotFoundError(f"{path} holds the exercises' answers; check the repository out")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
