# Every target installs what it needs into .venv. PYTHON chooses the interpreter: make test PYTHON=python3.12
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
export PIP_DISABLE_PIP_VERSION_CHECK := 1

INSTALL := python/tools/install $(BIN)/python

MINUTES ?= 10
VERSIONS ?= 16,17

.PHONY: help setup demo test versions floors torture bench lint faces docs extension clean

help:  ## Say what there is to make
	@sed -n 's/^\([a-z]*\):.*## /\1\t/p' $(MAKEFILE_LIST)

# One that was left half-made, or whose interpreter is gone, is made anew.
ifneq ($(shell $(BIN)/python -c 'import pip; print("whole")' 2>/dev/null),whole)
.PHONY: $(BIN)/python
endif
$(BIN)/python:
	$(PYTHON) -m venv --clear $(VENV)

$(VENV)/.demo: $(BIN)/python pyproject.toml
	$(INSTALL) -e '.[binary,local,server]'
	@touch $@

$(VENV)/.test: $(VENV)/.demo
	$(INSTALL) -e '.[binary,local,test,lint]'
	$(INSTALL) --no-deps --upgrade --target $(VENV)/sdk 'tidebase==0.7.*'  # has our import name: apart
	tests/install-system-packages
	npm install --silent --no-audit --no-fund --prefix $(VENV)/node eventsource@3 pg@8 axe-core@4 typescript@7 || echo "no node modules: tests that need them will be skipped"
	@touch $@

setup: $(VENV)/.test  ## Make .venv with everything that development needs

demo: $(VENV)/.demo  ## An agent is killed in the middle of a step, and goes on where it stopped
	$(BIN)/python python/examples/demo.py

test: setup lint  ## Run every test; what depends on the version, on each Postgres that is there
	$(BIN)/python -m pytest $(ARGS)

versions: setup  ## Run every test on Postgres 16 and 17, too, which it installs; VERSIONS=16 for one of them
	tests/install-postgres $(VENV)
	TIDEBASE_TEST_POSTGRES=$(VERSIONS) $(BIN)/python -m pytest $(ARGS)

floors: setup  ## The adapters' tests on the oldest versions of frameworks and libraries that pyproject.toml allows
	$(BIN)/python -m pip install --quiet uv
	tests/install-floors $(VENV)
	$(VENV)/floors/all/bin/python -m pytest -n 2 tests/test_pydantic_ai.py tests/test_openai_agents.py \
	  tests/test_langgraph.py tests/test_http.py tests/test_webhook.py tests/test_testing.py tests/test_integrations.py tests/test_step.py tests/test_cli.py $(ARGS)
	$(VENV)/floors/mcp/bin/python -m pytest -n 2 tests/test_mcp.py $(ARGS)
	$(VENV)/floors/testing/bin/python -m pytest -c /dev/null --rootdir python/examples python/examples

torture: setup  ## Break it on purpose for MINUTES=10: schedules, storms, sieges, failovers, random calls; with a report
	$(BIN)/python -m tests.torture --minutes $(MINUTES) $(ARGS)

bench: setup  ## Measure what steps and queues cost, beside one insert; PEERS=1 installs others to be measured beside
	$(if $(PEERS),$(INSTALL) -e '.[bench]')
	$(if $(PEERS),npm install --silent --no-audit --no-fund --prefix $(VENV)/bench-node graphile-worker@0.17 pg-boss@10 pg@8 || echo "no node modules: these peers will be skipped")
	$(BIN)/python -m tests.bench $(ARGS)

docs: setup  ## The documents and a reference of the package as a site: build/docs
	$(INSTALL) -e '.[docs]'
	$(BIN)/python python/tools/site.py build/docs

extension: $(VENV)/.demo  ## The schema as an extension of Postgres: build/extension, with a script for pg_tle
	$(BIN)/python -m tidebase.schema.extension build/extension

lint: setup  ## Style, types, layers
	$(BIN)/ruff check python tests
	$(BIN)/ruff format --check python tests
	$(BIN)/mypy --num-workers 2
	$(BIN)/python python/tools/faces.py --check
	$(BIN)/lint-imports
	@if [ -x $(VENV)/node/node_modules/.bin/tsc ]; then $(VENV)/node/node_modules/.bin/tsc -p python/tidebase/studio; \
	else echo "no node modules: the types of Studio are not checked"; fi

faces: setup  ## Make the modules for threads out of those for asyncio
	$(BIN)/python python/tools/faces.py

clean:  ## Remove what the targets made (not the data of a local Postgres)
	rm -rf $(VENV) build dist .mypy_cache .ruff_cache .pytest_cache .hypothesis
	find . -name __pycache__ -prune -exec rm -rf {} +
