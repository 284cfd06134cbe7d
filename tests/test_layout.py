"""The package in floors: a module imports from lower ones, or what precedes it on its own."""

import ast
from pathlib import Path

import pytest

FOLDER = Path(__file__).resolve().parent.parent / "xtclib"
FLOORS = {
    "ground": "files costs learned quantizers distillation packing sparsity published onnx_graph",
    "one": "layers masked attention shallow glue metrics english grammar mini",
    "two": "batches augmentation interface models matching vocabulary structure splitting "
    "architectures breakdown latency first_principles sparsify pruning theseus students techniques",
    "three": "sensitivity integrity artefact ledger onnx_export deployment objectives recipes "
    "evaluation",
    "four": "training teachers mlm dualtrain",
    "five": "settings results stages study",
    "top": "plot_style cost_plots deployment_plots pruning_plots distillation_plots tensor_plots "
    "plots widgets cli",
}
ORDER = [(floor, name) for floor, names in FLOORS.items() for name in names.split()]
MODULES = [name for _, name in ORDER]
LONGEST = 450


def imported(text):
    """The modules of xtclib that a source imports, in functions and for type checks too."""
    found = set()
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"line {node.lineno}: import by the full name"
            whole = node.module == "xtclib"
            names = [f"xtclib.{a.name}" for a in node.names] if whole else [node.module]
        else:
            continue
        found |= {name.split(".")[1] for name in names if name.startswith("xtclib.")}
    return found


def test_every_module_has_one_place():
    assert len(MODULES) == len(set(MODULES))
    assert {path.stem for path in FOLDER.glob("*.py")} == {*MODULES, "__init__"}


@pytest.mark.parametrize("floor, name", ORDER, ids=MODULES)
def test_imports_go_down(floor, name):
    before = set(MODULES[: MODULES.index(name)])
    found = imported((FOLDER / f"{name}.py").read_text(encoding="utf-8"))
    assert found <= before, f"{name} (floor {floor}) imports {sorted(found - before)} from above"


def test_the_package_itself_loads_only_the_artefact_format():
    assert imported((FOLDER / "__init__.py").read_text(encoding="utf-8")) == {"artefact"}


@pytest.mark.parametrize("name", MODULES)
def test_a_module_is_short_enough_to_hold_in_the_head(name):
    lines = (FOLDER / f"{name}.py").read_text(encoding="utf-8").count("\n")
    assert lines <= LONGEST, f"{name}.py has {lines} lines: split it by subject"


def test_lazy_names_exist_and_no_module_hides_one():
    """`import xtclib.x` would replace a function `xtclib.x` by the module."""
    import xtclib

    assert not set(xtclib._WHERE) & {*MODULES, *xtclib._MODULES}
    assert set(xtclib._MODULES) == set(MODULES) - {"cli"}
    for name, module in xtclib._WHERE.items():
        assert name in vars(__import__(f"xtclib.{module}", fromlist=["x"])), name
