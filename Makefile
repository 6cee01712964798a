# Everything runs in a virtual environment of its own, .venv, made from pyproject.toml when that has changed.
#   make demo            the whole way of usage, from requests to the bill, checked to the unit (BREAK=1: find a lost event)
#   make test            all tests
#   make lint docs bench what their names say

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
EXTRAS := stripe,embedded,memory,fastapi,cli

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help demo test lint docs bench clean

help:
	@sed -n 's/^#   //p' Makefile

demo: $(VENV)/.run
	@$(BIN)/meterkit demo $(if $(filter-out 0,$(BREAK)),--break)

test: $(VENV)/.dev
	$(BIN)/pytest -n 2 $(ARGS)

lint: $(VENV)/.dev
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/mypy tests
	$(BIN)/pyright

docs: $(VENV)/.dev
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

bench: .venv-bench/.done
	.venv-bench/bin/python benchmarks/run.py --json bench.json --markdown docs/benchmarks.md

clean:
	rm -rf $(VENV) .venv-bench site dist build .cache .hypothesis .pytest_cache .mypy_cache .ruff_cache .coverage*
	find src tests examples benchmarks -name __pycache__ -type d -prune -exec rm -rf {} +

# What a user installs, which is all that the demonstration needs.
$(VENV)/.run: pyproject.toml
	@command -v $(PYTHON) >/dev/null || { \
	  echo "meterkit needs Python 3.11 or later; there is no $(PYTHON): make PYTHON=/path/to/python3.12" >&2; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "meterkit needs Python 3.11 or later; this is $$($(PYTHON) --version): make PYTHON=python3.12" >&2; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || { \
	  echo "$(PYTHON) cannot make virtual environments; on Debian and Ubuntu: apt install python3-venv" >&2; exit 1; }
	@$(BIN)/python -m pip --version >/dev/null 2>&1 || $(PYTHON) -m venv --clear $(VENV)
	@echo "installing meterkit into $(VENV)"
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --upgrade 'pip>=25.1'
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[$(EXTRAS)]'
	@touch $@

# Tests, checks and documentation.
$(VENV)/.dev: $(VENV)/.run
	@echo "installing what tests, checks and documentation need into $(VENV)"
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --group dev --group docs
	@touch $@

.venv-bench/.done: benchmarks/requirements.txt
	$(PYTHON) -m venv .venv-bench
	.venv-bench/bin/pip install -q -r benchmarks/requirements.txt -e '.[stripe,embedded]'
	touch $@
