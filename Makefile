# Brisk's front page. Every verb works from a fresh clone: it sets up what it needs first.
SHELL := /bin/bash
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:

PYTHON ?= python3
VENV := $(CURDIR)/.venv
BIN := $(VENV)/bin
PROTOS := $(shell find protos -name '*.proto')

help: ## list the verbs
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  \033[1m%-12s\033[0m %s\n", $$1, $$2}'

$(VENV)/.stamp: pyproject.toml requirements.lock
	@scripts/make_venv $(PYTHON) $(VENV)
	@touch $@

gen/.stamp: $(PROTOS) $(VENV)/.stamp
	@echo "generating gen/ from protos/"
	@rm -rf gen/brisk && mkdir -p gen
	@PATH=$(BIN):$$PATH $(BIN)/python -m grpc_tools.protoc -I protos --python_out=gen --grpc_python_out=gen \
	  --mypy_out=quiet:gen --mypy_grpc_out=quiet:gen $(PROTOS)
	@touch $@

proto: gen/.stamp ## generate gen/ from protos/

.PHONY: help proto
