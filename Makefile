# Every target sets up what it needs: in an empty clone `make demo` or `make test` is enough.
#   make PYTHON=python3.12 setup       with another interpreter

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.DEFAULT_GOAL := help
.PHONY: help setup demo test test-all lint bench clean

help:  ## what there is to make
	@grep -E '^[a-z-]+:.*##' Makefile | sed -E 's/:.*## /\t/' | expand -t 12

setup: $(STAMP)  ## the environment in .venv, at the versions of constraints.txt

# The stamp is written last, so a set-up that was interrupted is done again.
$(STAMP): setup.cfg pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "$(PYTHON) is Python %d.%d: vssl needs 3.11 or newer; try make PYTHON=python3.11" % sys.version_info[:2])'
	test -x $(BIN)/pip || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --constraint constraints.txt --editable '.[cpu,flow,test]'
	@touch $@

demo: $(STAMP)  ## generate videos, train four plugins on them, evaluate, print the table
	$(BIN)/vssl demo

# One thread a process: sums are then added in one order, and parallel workers do not fight for cores.
test test-all: export OMP_NUM_THREADS ?= 1

test: lint  ## lint, types, and the tests that take minutes
	$(BIN)/python -m pytest -m "not slow"

test-all: $(STAMP)  ## the slow tests, which `make test` leaves out
	$(BIN)/python -m pytest -m slow

lint: $(STAMP)  ## ruff on everything, layout included, mypy on the public door
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: $(STAMP)  ## the measured ratios
	$(BIN)/python tools/bench.py

clean:  ## remove the environment and everything generated, except runs/
	rm -rf $(VENV) build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis plugins/*.egg-info
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
