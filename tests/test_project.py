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
PYTHONS = ["3.10", "3.11", "3.12", "3.13"]


def requirements():
    everything = [*PROJECT["dependencies"], *(line for lines in EXTRAS.values() for line in lines)]
    return [Requirement(line) for line in everything if not line.startswith("xtclib")]


def pins(python=None):
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    everything = [Requirement(line) for line in lines if line and not line.startswith("#")]
    if python is None:
        return everything
    where = {"python_version": python, "python_full_version": f"{python}.0"}
    return [pin for pin in everything if not pin.marker or pin.marker.evaluate(where)]


def test_constraints_are_exact_and_name_no_build():
    for pin in pins():
        assert re.fullmatch(r"==[^*+,]+", str(pin.specifier)), pin
    names = {canonicalize_name(pin.name) for pin in pins()}
    assert not [name for name in names if name.startswith(("nvidia", "triton", "cuda", "xtclib"))]


def test_every_package_is_pinned_once_on_every_python():
    for pin in pins():
        assert re.fullmatch(r'(python_version (<|>=) "3\.\d+")?', str(pin.marker or "")), pin
    names = sorted({canonicalize_name(pin.name) for pin in pins()})
    for python in PYTHONS:
        assert sorted(canonicalize_name(pin.name) for pin in pins(python)) == names, python


def test_the_supported_pythons_agree():
    assert PROJECT["requires-python"] == f">={PYTHONS[0]}"
    prefix = "Programming Language :: Python :: 3."
    said = [line for line in PROJECT["classifiers"] if line.startswith(prefix)]
    assert [line.removeprefix(prefix[:-2]) for line in said] == PYTHONS
    assert "sys.version_info < (3, 10)" in (ROOT / "Makefile").read_text()


@pytest.mark.parametrize("requirement", requirements(), ids=str)
def test_every_direct_dependency_is_pinned_inside_its_range(requirement):
    name = canonicalize_name(requirement.name)
    for python in PYTHONS:
        pinned = {canonicalize_name(pin.name): pin.specifier for pin in pins(python)}
        assert name in pinned, f"{name} is not in constraints.txt: run `make constraints`"
        version = str(pinned[name]).removeprefix("==")
        assert requirement.specifier.contains(version), f"{requirement} excludes {version}"


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


def test_a_commit_is_checked_by_the_ruff_that_is_pinned():
    hooks = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"]
    (rev,) = (repo["rev"] for repo in hooks if repo["repo"].endswith("ruff-pre-commit"))
    (pin,) = (pin.specifier for pin in pins() if pin.name == "ruff")
    assert rev.replace("v", "==") == str(pin)


@pytest.mark.parametrize("path", [".github/workflows/ci.yml", "environment.yml", "CITATION.cff"])
def test_yaml_loads(path):
    assert isinstance(yaml.safe_load((ROOT / path).read_text()), dict)


def test_workflow_runs_the_same_script_on_a_quoted_python():
    text = (ROOT / ".github/workflows/ci.yml").read_text()
    assert 'python-version: "3.11"' in text and "bash .ci/run" in text
