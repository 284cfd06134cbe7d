"""CONTRIBUTING.md: its code runs, and the files that it names are there."""

import re
from pathlib import Path

import pytest

from xtclib.distillation.terms import TERMS
from xtclib.techniques import TECHNIQUES

ROOT = Path(__file__).resolve().parent.parent
TEXT = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```python\n(.*?)^```", TEXT, re.M | re.S)


@pytest.mark.slow
def test_its_code_runs(capsys):
    assert len(BLOCKS) == 2
    names = {}
    try:
        for block in BLOCKS:
            exec(block, names)
    finally:
        TECHNIQUES.pop("coarse", None)
        TERMS.pop("largest_gap", None)
    assert "loss_largest_gap" in capsys.readouterr().out


def test_what_it_names_exists():
    files = re.findall(r"`((?:tests|data|techniques|study|recipes|training|distillation|tasks)/"
                       r"[\w/]+\.(?:py|yaml))`", TEXT)  # fmt: skip
    assert len(files) >= 10
    for name in files:
        assert (ROOT / name).exists() or (ROOT / "xtclib" / name).exists(), name
    for target in re.findall(r"`make (\w+)`", TEXT):
        assert re.search(rf"^{target}:", (ROOT / "Makefile").read_text(), re.M), target
