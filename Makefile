# Everything starts here: `make help`.
# Which package index pip asks is pip's own configuration; nothing below overrides it, except
# TORCH_INDEX, which takes torch alone from another one (see README).

PYTHON      ?= python3
VENV        ?= .venv
TORCH_INDEX ?=
WORKERS     ?= 2

BIN   := $(VENV)/bin
STAMP := $(VENV)/.stamp
TORCH := $(shell grep '^torch==' constraints.txt)
NBVAL := --nbval-lax --nbval-current-env --nbval-cell-timeout=300 --dist loadscope
NOTEBOOKS = $(wildcard notebooks/[0-9]*.ipynb)

.DEFAULT_GOAL := help
.PHONY: help setup run quick test all-tests schema lint unit nbval smoke results figures lab format strip outputs \
        constraints clean has-notebooks

help:  ## this list
	@grep -hE '^[a-z-]+:.*  ## ' $(MAKEFILE_LIST) | awk -F':.*  ## ' '{printf "  make %-12s %s\n", $$1, $$2}'
	@printf '\nvariables (make setup PYTHON=python3.12):\n'
	@printf '  %-17s %s\n' PYTHON 'makes .venv; 3.10 or newer (now: $(PYTHON))' \
	  VENV 'where the environment lives (now: $(VENV))' WORKERS 'test processes (now: $(WORKERS))' \
	  TORCH_INDEX "torch's package index; https://download.pytorch.org/whl/cpu has the small CPU build"

setup: $(STAMP)  ## the environment in .venv, at the versions of constraints.txt

# torch goes first and alone, so that the build asked for is the one everything else finds;
# its own dependencies follow in the second step.
$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || { \
	  echo "This needs Python 3.10 or newer. '$(PYTHON)' is: $$($(PYTHON) --version 2>&1)."; \
	  echo "Name another one: make setup PYTHON=python3.12"; exit 1; }
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -q --no-deps -c constraints.txt $(TORCH) $(if $(TORCH_INDEX),--index-url $(TORCH_INDEX))
	$(BIN)/python -m pip install -q -c constraints.txt -e '.[all]'
	-@$(BIN)/xtc fetch  # real sentences; without them generated ones stand in
	@touch $@

run: setup has-notebooks  ## every notebook, on real reviews: executed copies and pages in build/
	OMP_NUM_THREADS=1 $(BIN)/python scripts/run_notebooks.py --out build --jobs $(WORKERS)

quick: lint  ## linters and the unit tests that take under a second
	$(BIN)/pytest -p no:nbval -n $(WORKERS) -q -m "not slow" tests

test: quick nbval  ## before a commit: all of quick, and the notebooks' kept outputs

all-tests: lint unit nbval smoke  ## slow tests too, and a smoke run of each notebook; or one: lint unit nbval smoke

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/python scripts/strip_notebooks.py --check $(NOTEBOOKS)

unit: setup
	$(BIN)/pytest -n $(WORKERS) --doctest-modules tests xtclib

nbval: setup has-notebooks
	$(BIN)/pytest -n $(WORKERS) $(NBVAL) $(NOTEBOOKS)

smoke: setup has-notebooks
	OMP_NUM_THREADS=1 $(BIN)/python scripts/run_notebooks.py --profile smoke --out build/smoke --jobs $(WORKERS)

has-notebooks:
	@test -n "$(NOTEBOOKS)" || { echo "There is no notebooks/NN_*.ipynb here: nothing to run."; exit 1; }

results: setup  ## the committed records, again; picks up where it was cut off (`xtc results --missing` lists)
	$(BIN)/xtc results

schema: setup  ## the JSON schema by which editors complete recipes, after a config has changed
	$(BIN)/python scripts/schema.py

figures: setup  ## the gallery in figures/, RESULTS.md and the README's table, from the committed records
	$(BIN)/python scripts/figures.py
	$(BIN)/python scripts/results.py

lab: setup  ## JupyterLab on the repository, opened at notebooks/, so that links to ../ work
	$(BIN)/jupyter lab --ServerApp.root_dir=. --LabApp.default_url=/lab/tree/notebooks

format: setup  ## ruff's fixes and formatting
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

outputs: setup has-notebooks  ## run the notebooks in place (`smoke` profile) and keep what nbval checks
	OMP_NUM_THREADS=1 $(BIN)/python scripts/run_notebooks.py --profile smoke --in-place

strip: setup has-notebooks  ## drop the heavy outputs of the notebooks before a commit
	$(BIN)/python scripts/strip_notebooks.py $(NOTEBOOKS)

# What .venv has replaces the pins that hold for its Python; pins for other Pythons stay. A new
# version goes to every Python at once: `make setup` with each says where one needs a marker.
define PIN
import sys
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name as canonical
lines = open('constraints.txt').read().splitlines()
head = [line for line in lines if line.startswith('#')]
pins = [Requirement(line) for line in lines if line and line not in head]
have = {canonical(new.name): new for new in map(Requirement, sys.stdin.read().split())}
held = {canonical(pin.name): pin for pin in pins if not pin.marker or pin.marker.evaluate()}
for name in held.keys() & have.keys():
    held[name].specifier = have[name].specifier
pins += [have[name] for name in have.keys() - held.keys()]
pins.sort(key=lambda pin: (pin.name.lower(), '>=' in str(pin.marker)))
open('constraints.tmp', 'w').writelines(f'{line}\n' for line in [*head, *pins])
print(f'constraints.txt: {len(pins)} pins. Kept, though not in this environment:')
print(' ', ' '.join(sorted(held.keys() - have.keys())) or 'none')
endef
export PIN

constraints:  ## pin what is in .venv now (after an upgrade that passed `make test`)
	@$(BIN)/python -m pip freeze --exclude-editable --exclude pip --exclude wheel --exclude xtclib \
	  | sed -E 's/^(torch==[^+]*)\+.*/\1/' | grep -vE '^(nvidia-|triton|cuda-)| @ |^#' \
	  | $(BIN)/python -c "$$PIN"
	@mv constraints.tmp constraints.txt

clean:  ## remove build/ and caches; .venv and runs/ stay
	rm -rf build *.egg-info .pytest_cache .ruff_cache .mypy_cache .hypothesis
	find . -name __pycache__ -not -path './$(VENV)/*' -prune -exec rm -rf {} +
