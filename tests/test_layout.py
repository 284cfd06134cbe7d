"""The package in floors: a folder imports from lower ones, and no circle is made."""

import ast
from pathlib import Path

import pytest

FOLDER = Path(__file__).resolve().parent.parent / "xtclib"
# From the ground up. A new folder takes its place here, a new file none.
FLOORS = (
    "files config cache bert attention tasks distillation techniques training costs teachers "
    "recipes artefact records deployment study figures cli"
).split()
LONGEST = 430


def room(module):
    """`xtclib.costs.latency` → `costs`."""
    return (module.split(".") + [""])[1]


def imported(path):
    """The modules of xtclib that a file imports, in functions and for type checks too."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}, line {node.lineno}: import by the full name"
            whole = node.module == "xtclib"
            names = [f"xtclib.{a.name}" for a in node.names] if whole else [node.module]
        else:
            continue
        found |= {name for name in names if name.startswith("xtclib.")}
    return found


FILES = sorted(FOLDER.rglob("*.py"))


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(FOLDER)))
def test_imports_go_down(path):
    own = path.relative_to(FOLDER).with_suffix("").parts[0]
    if own == "__init__":
        return
    below = FLOORS[: FLOORS.index(own) + 1]
    above = {name for name in imported(path) if room(name) not in below}
    assert not above, f"{own} imports {sorted(above)} from above"


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(FOLDER)))
def test_a_module_is_short_enough_to_hold_in_the_head(path):
    lines = path.read_text(encoding="utf-8").count("\n")
    assert lines <= LONGEST, f"{path} has {lines} lines: split it by subject"
