# Everything runs in a virtual environment of its own, .venv, made from pyproject.toml when that has changed.
#   make demo            the whole way of usage, from requests to the bill, checked to the unit (BREAK=1: find a lost event; KEEP=1: look at its pages)
#   make test            all tests
#   make field           all servers, loops and lifespans, other frameworks, and all of what `make test` runs a sample of; prints the matrix
#   make coverage        the tests again, and which lines and branches of meterkit they do not run
#   make mutants         mutants: each of the scripts, and four of five of Python, must fail a test
#   make soak            ten minutes in which all is killed at random; models of the scripts, properties, crashes and lives at length
#   make test-oldest     the tests of what depends on other packages, with the oldest versions that pyproject.toml allows
#   make test-sdks       token counts off the objects of providers' SDKs and of frameworks around them, installed for it
#   make release         wheel and source distribution in dist/, tried on each Python on PATH; what is left to do by hand (ARGS='--extra cli')
#   make lint docs bench what their names say

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
EXTRAS := stripe,embedded,memory,fastapi,cli,audit,storage,notify,pages,simulate
OLDEST := .venv-oldest
# What stands on other packages: requests and answers (starlette, fastapi, httpx), settings and plans files (pydantic, pyyaml),
# commands (typer, rich), the clients of the store and of Stripe. Arithmetic of our own is not run again for their sake.
OLDEST_TESTS := tests/test_public_surface.py tests/testing tests/stripe_emulator tests/llm_usage/test_objects.py \
  $(patsubst %,tests/unit/test_%.py,settings url sync_twin middleware_arguments) \
  $(filter-out %/test_fuzz.py,$(wildcard tests/catalog/test_*.py)) \
  $(filter-out %_faults.py %_decisions.py %_estimates.py %_rates.py %_reserved.py %_reporting.py %_suite.py %_hostile.py %_mcp.py, \
    $(wildcard tests/asgi/test_*.py)) \
  $(patsubst %,tests/cli/test_%.py,messages customers_command help usage_command) \
  $(patsubst %,tests/promises/test_%.py,i6_basic i8_transparent i10_secrets) \
  $(patsubst %,tests/delivery/test_%.py,stripe_v1 flusher outbox) \
  $(patsubst %,tests/store/test_%.py,cluster connection customers embedded settlements store_life tls)
# What these tests themselves use is younger: fields of schedules, decimals and pausing in Stripe's SDK.
OLDEST_LACKS := --deselect=tests/stripe_emulator/test_schedules.py::test_every_field_is_stored_and_shown \
  --deselect=tests/stripe_emulator/test_invoices.py::test_an_item_is_on_the_next_invoice \
  --deselect=tests/stripe_emulator/test_invoices.py::test_f_30i_an_item_may_have_an_amount \
  --deselect=tests/stripe_emulator/test_invoices.py::test_an_item_is_changed_until_its_invoice_is_final \
  --deselect=tests/stripe_emulator/test_trials.py::test_a_resumption_that_is_not_paid \
  --deselect=tests/stripe_emulator/test_trials.py::test_what_cannot_have_a_schedule \
  --deselect=tests/stripe_emulator/test_trials.py::test_a_pause_credits_what_is_left_and_may_go_on_in_its_cycle
# anyio's oldest plugin for pytest uses a name that pytest has renamed; Stripe's SDK had deprecated to_dict for a while.
OLDEST_WARNS := -W ignore::pytest.PytestRemovedIn10Warning -W "ignore:Deprecated. The public interface:DeprecationWarning"
comma := ,

# Tests start hundreds of processes: what one of them has compiled, the others read.
export PYTHONDONTWRITEBYTECODE :=

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help demo test field coverage mutants soak test-oldest test-sdks release lint docs bench clean

help:
	@sed -n 's/^#   //p' Makefile

DEMO := $(BIN)/meterkit demo $(if $(filter-out 0,$(BREAK)),--break) $(if $(filter-out 0,$(KEEP)),--keep)
CHAT := printf '\n--- Tokens, credits, and a client that hangs up (examples/fastapi_ai)\n' && $(BIN)/python examples/fastapi_ai/bill.py

# What goes on until Ctrl-C is the last of it.
demo: $(VENV)/.run
	@$(if $(filter-out 0,$(KEEP)),$(CHAT) && $(DEMO),$(DEMO) && $(CHAT))

# Four at once on two cores: many tests wait, for a server that hangs or a timeout; more take longer each.
test: $(VENV)/.dev
	$(BIN)/pytest -n 4 --dist worksteal $(ARGS)

field: $(VENV)/.dev
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --group frameworks
	$(BIN)/pytest -n 2 --whole tests/field $(ARGS)
	$(BIN)/pytest -n 2 --whole -m whole --ignore tests/field $(ARGS)
	$(BIN)/pytest -n 2 --store valkey tests/delivery tests/subscriptions tests/insights $(ARGS)
	$(BIN)/pytest -n 2 --store cluster tests/field/test_servers.py tests/delivery/test_flusher.py $(ARGS)

coverage: $(VENV)/.dev
	rm -f .coverage .coverage.*
	$(BIN)/coverage run -m pytest -n 2 $(ARGS) || { $(BIN)/coverage combine --quiet; false; }
	$(BIN)/coverage combine --quiet
	$(BIN)/coverage report --show-missing --skip-covered

mutants: $(VENV)/.dev
	METERKIT_ALL_MUTANTS=1 $(BIN)/pytest -n 2 --timeout 7200 $(wildcard tests/store/test_*mutations.py) \
	  tests/test_python_mutations.py $(ARGS)

soak: $(VENV)/.dev
	METERKIT_SOAK_S=600 $(BIN)/pytest --timeout 7200 tests/promises/test_i6_i11_soak.py $(ARGS)
	METERKIT_ALL_MUTANTS=1 METERKIT_CRASH_SEEDS=500 METERKIT_HYPOTHESIS_PROFILE=soak $(BIN)/pytest -n 2 --timeout 7200 \
	  --whole --ignore tests/store/test_scripts_mutations.py tests/store tests/catalog tests/llm_usage tests/unit tests/promises $(ARGS)
	METERKIT_ALLOTMENT_STEPS=1000000 $(BIN)/pytest -n 2 --whole --timeout 7200 tests/promises/test_i3_allotments.py -k store_counts $(ARGS)
	METERKIT_SPIKE_CUSTOMERS=200 $(BIN)/pytest -n 2 --timeout 7200 tests/notify/test_watches.py $(ARGS)
	METERKIT_DECISIONS=100000 $(BIN)/pytest --whole --timeout 7200 tests/promises/test_i3_exact_money.py $(ARGS)
	METERKIT_LIVES=500 $(BIN)/pytest -n 2 --whole --timeout 7200 tests/promises/test_i13_matrix.py \
	  tests/promises/test_i13_lives.py $(ARGS)

test-oldest: $(OLDEST)/.done
	$(OLDEST)/bin/pytest -n 3 --dist worksteal $(OLDEST_WARNS) $(OLDEST_TESTS) $(OLDEST_LACKS) $(ARGS)

test-sdks: $(VENV)/.dev
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --group sdks
	$(BIN)/pytest tests/llm_usage/test_sdks.py $(ARGS)

release: $(VENV)/.run
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --group release
	@$(BIN)/python release/prepare.py $(ARGS)

lint: $(VENV)/.dev
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	@# macOS lacks functions that Linux has.
	$(BIN)/mypy --platform darwin --cache-dir .mypy_cache/darwin
	$(BIN)/mypy tests
	$(BIN)/pyright

docs: $(VENV)/.dev
	@# Quiet where all is well; else once more, for what it has to say.
	@export NO_MKDOCS_2_WARNING=1; $(BIN)/mkdocs build --strict --quiet || $(BIN)/mkdocs build --strict
	@METERKIT_SITE=$(CURDIR)/site $(BIN)/pytest -q tests/site/test_built.py tests/site/test_search.py
	@$(BIN)/python tests/drivers/shown_blocks.py

# Needs wrk (apt-get install wrk), two idle cores, and one to two hours.
bench: .venv-bench/.done
	@# A short run first: a part that fails would otherwise fail after an hour.
	.venv-bench/bin/python benchmarks/run.py --quick > /dev/null
	.venv-bench/bin/python benchmarks/run.py --json bench.json --markdown docs
	.venv-bench/bin/python docs/tools/drawings.py

clean:
	rm -rf $(VENV) .venv-bench $(OLDEST) site dist build .cache .hypothesis .pytest_cache .mypy_cache .ruff_cache .coverage*
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

# What a user installs at its oldest, with today's tools of the tests; pip knows no "oldest", uv does.
$(OLDEST)/.done: pyproject.toml
	@echo "installing the oldest versions that pyproject.toml allows into $(OLDEST)"
	@$(PYTHON) -m venv --clear $(OLDEST)
	@$(OLDEST)/bin/python -m pip install --quiet --disable-pip-version-check uv
	@$(OLDEST)/bin/uv pip compile --quiet --resolution lowest-direct --no-header --no-annotate \
	  --python $(OLDEST)/bin/python $(foreach extra,$(subst $(comma), ,$(EXTRAS)),--extra $(extra)) \
	  --output-file $(OLDEST)/oldest.txt pyproject.toml
	@$(OLDEST)/bin/uv pip install --quiet --python $(OLDEST)/bin/python --requirement $(OLDEST)/oldest.txt \
	  --constraint $(OLDEST)/oldest.txt --group tests --editable .
	@touch $@

.venv-bench/.done: benchmarks/requirements.txt
	$(PYTHON) -m venv .venv-bench
	.venv-bench/bin/pip install -q -r benchmarks/requirements.txt -e '.[stripe,embedded,simulate,pages,audit]'
	touch $@
