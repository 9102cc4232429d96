# Brisk's front page. Every verb works from a fresh clone: it sets up what it needs first.
SHELL := /bin/bash
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:

PYTHON ?= python3
VENV := $(CURDIR)/.venv
BIN := $(VENV)/bin
DATA ?= $(CURDIR)/.brisk
PROTOS := $(shell find protos -name '*.proto')
NATIVE := $(shell find native -type f -not -path '*/build/*' -not -name '*.pyc')
FUZZ_RUNS ?= 2000000
BUF := @bufbuild/buf@1.75.0
CHECKED := services sdk/python/brisk_client native/python scripts bench sim tests examples

help: ## list the verbs
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  %-13s %s\n", $$1, $$2}'

$(VENV)/.stamp: pyproject.toml requirements.lock scripts/make_venv
	@scripts/make_venv $(PYTHON) $(VENV)
	@touch $@

gen/.stamp: $(PROTOS) $(VENV)/.stamp
	@echo "generating gen/ from protos/"
	@rm -rf gen/brisk && mkdir -p gen
	@PATH=$(BIN):$$PATH $(BIN)/python -m grpc_tools.protoc -I protos --python_out=gen \
	  --grpc_python_out=gen --mypy_out=quiet:gen --mypy_grpc_out=quiet:gen $(PROTOS)
	@touch $@

$(VENV)/.native: $(NATIVE) $(VENV)/.stamp scripts/build_native
	@scripts/build_native $(VENV)
	@touch $@

setup: $(VENV)/.stamp gen/.stamp $(VENV)/.native ## make the environment, generated code and native loader
proto: gen/.stamp ## generate gen/ from protos/
native: ## build the native loader again; fail if it cannot be built
	@rm -f $(VENV)/.native && BRISK_NATIVE_REQUIRED=1 $(MAKE) --no-print-directory $(VENV)/.native

demo: setup ## start everything, stream from a cold and a warm model, stop everything
	@BRISK_DATA_DIR=$(DATA) $(BIN)/python scripts/demo.py
demo-large: setup ## the same with a 2.6 GB checkpoint of OPT-1.3B's shape
	@BRISK_DATA_DIR=$(DATA) $(BIN)/python scripts/demo.py --large
up: setup ## run all services in the foreground (brisk up)
	@$(BIN)/brisk up
down: setup ## stop what `brisk up --detach` started
	@$(BIN)/brisk down

test: setup test-native ## run all tests
	@OMP_NUM_THREADS=1 $(BIN)/python -m pytest $(PYTEST_ARGS)
test-native: $(VENV)/.stamp ## run the C++ tests, plain and under the sanitizers
	@export PATH=$(BIN):$$PATH; set -e; for preset in plain sanitize thread; do \
	  (cd native && cmake --preset $$preset >/dev/null && cmake --build build/$$preset --parallel $$(nproc)); \
	  ctest --test-dir native/build/$$preset --output-on-failure; done
fuzz: ## fuzz the native parsers, FUZZ_RUNS inputs each, where clang is there
	@scripts/fuzz $(FUZZ_RUNS)
lint: setup lint-proto ## check format, style and who imports whom
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/clang-format --dry-run --Werror $$(find native tests -name '*.?pp' -not -path '*/build/*')
	@$(BIN)/lint-imports --no-cache
lint-proto: ## check the protos with buf, where npm is there to bring it
	@if command -v npm >/dev/null; then \
	  test -x .tools/node_modules/.bin/buf || npm install --silent --no-save --prefix .tools $(BUF); \
	  cd protos && ../.tools/node_modules/.bin/buf lint && ../.tools/node_modules/.bin/buf format -d --exit-code; \
	else echo "npm not found: buf skipped; tests/contract checks its main rules"; fi
type: setup ## check types (mypy --strict)
	@$(BIN)/mypy $(CHECKED)
check: lint type test ## what CI runs
fmt: setup ## format Python and C++
	@$(BIN)/ruff check --fix-only --quiet . ; $(BIN)/ruff format .
	@$(BIN)/clang-format -i $$(find native tests -name '*.?pp' -not -path '*/build/*')
bench: setup ## run all benchmarks that can run here in full and write docs/benchmarks/
	@for program in bench/[a-z]*.py; do \
	  grep -q __main__ $$program || continue; $(BIN)/python $$program || [ $$? -eq 2 ] || failed=1; done; exit $${failed:-0}
sim: setup ## simulate clusters of 4 to 10,000 nodes under five policies, write docs/benchmarks/simulation*.md
	@$(BIN)/python -m sim $(SIM_ARGS)
lock: ## resolve the dependencies again and write requirements.lock
	@scripts/lock $(PYTHON)
hooks: setup ## install the pre-commit hooks
	@$(BIN)/pre-commit install
clean: ## remove all that the other verbs made, the data folder excepted
	@rm -rf $(VENV) .venv-* .tools gen native/build .mypy_cache .ruff_cache .pytest_cache .hypothesis

.PHONY: help setup proto native demo demo-large up down test test-native fuzz lint lint-proto type check fmt bench sim lock hooks clean
