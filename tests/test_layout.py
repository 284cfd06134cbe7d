"""The package in floors: a folder imports from lower ones, and no circle is made."""

import ast
import importlib
import json
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
FOLDER = ROOT / "xtclib"
# From the ground up. A new folder takes its place here, a new file none.
FLOORS = (
    "files config processes clock cache notebook bert attention tasks distillation techniques "
    "training costs teachers recipes artefact records deployment study figures cli"
).split()


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


def test_the_house_stays_small():
    rooms = [p for p in FOLDER.iterdir() if p.name != "__pycache__"]
    assert len(rooms) <= 22, "one folder a family: a new one goes into techniques/ or tasks/"
    for path in FILES:
        lines = path.read_text(encoding="utf-8").count("\n")
        assert lines <= 400, f"{path} has {lines} lines: is it one subject?"


def users():
    """Notebooks, scripts and benchmarks as text, by name."""
    for path in [*ROOT.glob("scripts/*.py"), *ROOT.glob("benchmarks/*.py")]:
        yield path.name, path.read_text(encoding="utf-8")
    for path in ROOT.glob("notebooks/*.ipynb"):
        cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
        yield path.name, "\n".join("".join(c["source"]) for c in cells if c["cell_type"] == "code")


def test_whoever_uses_the_package_takes_names_from_its_folders():
    """A folder says by its `__init__` and its modules what is public; `_names` are not."""
    for name, text in users():
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("xtclib"):
                assert not [a.name for a in node.names if a.name.startswith("_")], name
                folder = importlib.import_module(node.module.rpartition(".")[0] or "xtclib")
                exported = {a.name for a in node.names} & set(getattr(folder, "__all__", ()))
                assert folder.__name__ == "xtclib" or not exported, (
                    f"{name}: {exported} come from {folder.__name__}, once"
                )


def test_what_a_folder_exports_is_there():
    for path in FILES:
        if path.name == "__init__.py":
            module = importlib.import_module(".".join(path.relative_to(ROOT).parts[:-1]))
            assert all(hasattr(module, name) for name in getattr(module, "__all__", ()))
