"""The files that describe the project agree with each other."""

import re
import sys
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

if sys.version_info >= (3, 11):
    import tomllib
else:
    tomllib = pytest.importorskip("tomli")

ROOT = Path(__file__).resolve().parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
EXTRAS = PROJECT["optional-dependencies"]


def requirements():
    everything = [*PROJECT["dependencies"], *(line for lines in EXTRAS.values() for line in lines)]
    return [Requirement(line) for line in everything if not line.startswith("xtclib")]


def pins():
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    return [Requirement(line) for line in lines if line and not line.startswith("#")]


def test_constraints_are_exact_and_name_no_build():
    for pin in pins():
        assert re.fullmatch(r"==[^*+,]+", str(pin.specifier)), pin
    names = [canonicalize_name(pin.name) for pin in pins()]
    assert len(names) == len(set(names))
    assert not [name for name in names if name.startswith(("nvidia", "triton", "cuda", "xtclib"))]


@pytest.mark.parametrize("requirement", requirements(), ids=str)
def test_every_direct_dependency_is_pinned_inside_its_range(requirement):
    pinned = {canonicalize_name(pin.name): pin.specifier for pin in pins()}
    name = canonicalize_name(requirement.name)
    assert name in pinned, f"{name} is not in constraints.txt: run `make constraints`"
    version = str(pinned[name]).removeprefix("==")
    assert requirement.specifier.contains(version), f"{requirement} excludes the pinned {version}"


def test_all_holds_every_extra():
    (everything,) = (Requirement(line) for line in EXTRAS["all"])
    assert everything.extras == set(EXTRAS) - {"all"}


def test_environment_installs_what_make_setup_does():
    environment = yaml.safe_load((ROOT / "environment.yml").read_text())
    (pip,) = (entry["pip"] for entry in environment["dependencies"] if isinstance(entry, dict))
    assert pip == ["-c constraints.txt", "-e .[all]"]
    assert "python=3.11" in environment["dependencies"]


def test_citation_has_the_version_and_complete_references():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert citation["version"] == PROJECT["version"]
    assert citation["license"] == PROJECT["license"]
    for reference in citation["references"]:
        assert reference["authors"] and reference["title"] and reference["year"]
        assert re.fullmatch(r"\d{4}\.\d{5}", reference["identifiers"][0]["value"].split(":")[1])


@pytest.mark.parametrize("path", [".github/workflows/ci.yml", "environment.yml", "CITATION.cff"])
def test_yaml_loads(path):
    assert isinstance(yaml.safe_load((ROOT / path).read_text()), dict)


def test_workflow_runs_the_same_script_on_a_quoted_python():
    text = (ROOT / ".github/workflows/ci.yml").read_text()
    assert 'python-version: "3.11"' in text and "bash .ci/run" in text
