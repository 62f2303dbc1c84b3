VENV ?= .venv
PYTHON ?= $(shell command -v python3.11 || command -v python3)
PRESET ?= cpu
RUNS ?= runs/smoke
# Relative, of a number that the reference has from one seed. Judges and codecs that are trained on another kind of
# processor end elsewhere: there spoken_digits needs 0.3.
TOLERANCE ?= 1e-3
BIN := $(VENV)/bin
INSTALL := $(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt torch==2.13.0
FITS := $(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 14))'
# Two torch processes on two cores otherwise spin at each other's barriers and slow down many times over.
export OMP_WAIT_POLICY ?= PASSIVE

.DEFAULT_GOAL := help
.PHONY: help quickstart test check smoke readme clean

help: ## show this list
	@sed -n 's/^\([a-z%-]*\):.*## /  make \1\t/p' Makefile | expand -t 28

quickstart: $(VENV)/.core ## train and score muni on the mixture, beside the paper's row
	$(BIN)/bench reproduce table5 --method muni --preset $(PRESET) --seed 0

test: $(VENV)/.dev ## run the tests
	OMP_NUM_THREADS=1 $(BIN)/pytest -n 2

check: $(VENV)/.dev ## lint, formatting, types
	$(BIN)/ruff check . && $(BIN)/ruff format --check .
	$(BIN)/mypy

reproduce-%: $(VENV)/.core ## a table of the paper: make reproduce-table5 PRESET=cpu
	$(BIN)/bench reproduce $* --preset $(PRESET)

smoke: $(VENV)/.core ## the whole of table5 in its smallest form, run afresh and checked against the reference
	rm -rf $(RUNS)
	OMP_NUM_THREADS=1 $(BIN)/bench reproduce table5 --preset smoke --seed 0 --runs $(RUNS)
	OMP_NUM_THREADS=1 $(BIN)/bench check --preset smoke --runs $(RUNS) --tolerance 1e-3

smoke-%: $(VENV)/.dev ## the same of another dataset's tables: make smoke-table6, make smoke-table3+table4
	rm -rf $(RUNS)-$*
	for table in $(subst +, ,$*); do OMP_NUM_THREADS=1 $(BIN)/bench reproduce $$table --preset smoke --seed 0 --runs $(RUNS)-$* || exit; done
	OMP_NUM_THREADS=1 $(BIN)/bench check --preset smoke --runs $(RUNS)-$* --tolerance $(TOLERANCE)

readme: $(VENV)/.core ## write the README's tables anew from results/
	$(BIN)/bench readme

clean: ## remove the environment and every cache; runs/ and results/ stay
	rm -rf $(VENV) build dist *.egg-info .mypy_cache .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# Stamps: an environment is made once, and again when what it is made from changes.
$(VENV)/.core: pyproject.toml constraints.txt
	@$(FITS) || { echo "$(PYTHON) is no Python 3.11 to 3.13: make $(MAKECMDGOALS) PYTHON=python3.11"; exit 1; }
	@echo "Installing into $(VENV): about a minute" && $(PYTHON) -m venv $(VENV)
	$(INSTALL) -e . && touch $@

$(VENV)/.dev: $(VENV)/.core
	$(INSTALL) -e '.[dev]' && touch $@
