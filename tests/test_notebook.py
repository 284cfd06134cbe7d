"""The notebooks hold to their limits, and their claims and exercises do what they promise."""

import re

import nbformat
import numpy as np
import pytest

from xtclib.cache import ROOT
from xtclib.notebook import _exercises, check, claims

NOTEBOOKS = sorted((ROOT / "notebooks").glob("[0-9]*.ipynb"))
EXERCISES = _exercises()
NUMBERS = [name for name, (_, digits) in EXERCISES.ANSWERS.items() if digits is not None]


def cells(path, kind):
    return [c for c in nbformat.read(path, as_version=4).cells if c.cell_type == kind]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_is_short_and_so_are_its_cells(path):
    code, text = cells(path, "code"), cells(path, "markdown")
    assert len(code) + len(text) <= 60
    for cell in code:
        lines = [line for line in cell.source.splitlines() if line.strip()]
        assert len(lines) <= 15, cell.source


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_has_claims_and_exercises_with_hints_code_and_a_challenge(path):
    code = "\n".join(cell.source for cell in cells(path, "code"))
    text = "\n".join(cell.source for cell in cells(path, "markdown"))
    overture = path.stem[:2] == "00"  # ten minutes
    assert code.count("claim(") >= (3 if overture else 10)
    asked = set(re.findall(r'check\("([^"]+)"', code))
    assert asked == {n for n in [*EXERCISES.ANSWERS, *EXERCISES.TESTS] if n[:2] == path.stem[:2]}
    assert (overture or asked & set(EXERCISES.TESTS)) and "**Challenge.**" in text
    folded = re.findall(r"<summary>(Hint|Solution|A solution)<", text)
    assert folded[::2] == ["Hint"] * (len(folded) // 2) and "Hint" not in folded[1::2]
    assert '"..' not in code, "paths start at cache.ROOT: a notebook may run from anywhere"


def test_a_claim_holds_or_stops_where_it_speaks_of(capsys):
    claim = claims("mini", TASK=None, SEED=0)
    claim(True, "holds", "mini")
    claim(True, "holds everywhere")
    with pytest.raises(AssertionError, match=r"the text says: not so; here \(mini\)"):
        claim(False, "not so", "mini")
    assert capsys.readouterr().out == ""
    claims("mini", TASK="stsb")(False, "not so", "mini")
    assert capsys.readouterr().out == "(said of mini, not of mini, TASK = 'stsb': not so)\n"
    with pytest.raises(AssertionError):  # what no profile is named for holds for every task
        claims("smoke", TASK="stsb")(False, "not so")


@pytest.mark.parametrize("name", EXERCISES.ANSWERS)
def test_a_right_answer_is_told_and_a_wrong_one_not_shown(name, capsys):
    right = EXERCISES.ANSWERS[name][0]()
    right = float(right) if name in NUMBERS or hasattr(right, "item") else right
    check(name, right)
    assert capsys.readouterr().out == "right\n"
    for wrong in (None, "none", [1], 12345.678, True):
        if wrong == right:
            continue
        check(name, wrong)
        told = capsys.readouterr().out
        assert told.startswith("not yet") and "right" not in told
        assert str(right) not in told or (isinstance(right, float) and right < 1)


@pytest.mark.parametrize("name", NUMBERS)
def test_an_answer_rounded_as_stated_is_right(name):
    compute, digits = EXERCISES.ANSWERS[name]
    assert EXERCISES.verdict(name, round(float(compute()), digits)) == "right"
    assert EXERCISES.verdict(name, float(compute()) + 2 * 10**-digits) != "right"


@pytest.mark.parametrize("name", EXERCISES.TESTS)
def test_the_solution_of_a_code_exercise_passes_its_test(name):
    number, function = name.split()
    (path,) = (path for path in NOTEBOOKS if path.stem.startswith(number))
    text = "\n".join(cell.source for cell in cells(path, "markdown"))
    (solution,) = re.findall(rf"```python\n(def {function}\(.*?)```", text, re.DOTALL)
    names = {"torch": EXERCISES.torch, "np": np}
    exec(solution, names)
    assert re.fullmatch(r"right, in \d cases", EXERCISES.verdict(name, names[function]))


def test_what_a_wrong_function_does_is_told():
    told = [EXERCISES.verdict("02 by_row", f) for f in (
        lambda x, bits: None, lambda x, bits: x[:1], lambda x, bits: x, lambda x: x
    )]  # fmt: skip
    for verdict, words in zip(told, ("returns None", "shape (1, 32)", "differ", "TypeError"),
                              strict=True):  # fmt: skip
        assert verdict.startswith("not yet") and words in verdict
