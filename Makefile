# make help
SHELL := /bin/bash
PYTHON ?= $(firstword $(shell command -v python3.11 python3.12 python3.13 python3 2>/dev/null))
BIN := .venv/bin
SETUP := .venv/.installed
ARGS ?=

ifdef DATA
SPEC ?= sweeps/explore.yaml
LOCAL_SWEEP = $(BIN)/finetune sweep "$(SPEC)" "data.root=$(DATA)" --out "runs/$(basename $(notdir $(SPEC)))-$(notdir $(patsubst %/,%,$(DATA)))"
else
SPEC ?= sweeps/local.yaml
LOCAL_SWEEP = $(BIN)/finetune sweep "$(SPEC)"
endif

.PHONY: help setup sweep-local agents test test-slow test-all soak check lint format lock clean
.DEFAULT_GOAL := help

help: ## print this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-12s %s\n", $$1, $$2}'

setup: $(SETUP) ## create .venv from the lock file

$(SETUP): requirements.lock pyproject.toml
	@"$(PYTHON)" -c 'import sys; sys.exit("Python 3.11 or newer is needed; set PYTHON=/path/to/it") if sys.version_info < (3, 11) else 0'
	"$(PYTHON)" -m venv .venv
	@echo "installing the locked packages: a few minutes the first time"
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps -r requirements.lock
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e .
	@touch $@

sweep-local: $(SETUP) ## run a sweep here; DATA=FOLDER for your images, SPEC=FILE for another sweep, ARGS="KEY=VALUE …"
	@$(LOCAL_SWEEP) $(ARGS)

agents: $(SETUP) ## run W&B agents here, one a GPU: SWEEP=ENTITY/PROJECT/ID
	@$(BIN)/finetune agent "$(or $(SWEEP),$(error give SWEEP=ENTITY/PROJECT/ID, as wandb sweep printed it))" $(ARGS)

test: $(SETUP) ## run the tests that show whether a change can be trusted, five minutes on two cores; ARGS="-n 8"
	$(BIN)/python -m pytest -n 2 --dist worksteal -m "not slow" $(ARGS)

test-slow: $(SETUP) ## run the others: kills at every point, every command of every document
	$(BIN)/python -m pytest -n 3 --dist worksteal -m slow $(ARGS)

test-all: test test-slow ## run all of them, half an hour

soak: $(SETUP) ## run 20 sweeps under random kills and print what was lost; about an hour; ARGS="--seeds 3"
	$(BIN)/python -m tests.soak $(ARGS)

check: lint test ## what every change must pass; CI runs make test-slow too

lint: $(SETUP) ## ruff and mypy
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(SETUP) ## rewrite the code as ruff wants it
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

lock: ## bring requirements.lock up to pyproject.toml; remove a line from it to let that version move
	$(BIN)/python -m pip install --quiet uv
	echo '# Exact versions that the Makefile installs. Written by `make lock` from pyproject.toml.' > requirements.new
	$(BIN)/uv pip compile pyproject.toml --group dev --universal --python-version 3.11 --constraint constraints.txt \
	  --constraint requirements.lock --no-emit-index-url --no-header --no-annotate --quiet >> requirements.new
	mv requirements.new requirements.lock

clean: ## remove what the build made, not the runs
	rm -rf .venv dist build .mypy_cache .ruff_cache .pytest_cache
