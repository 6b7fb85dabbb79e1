# make help
SHELL := /bin/bash
PYTHON ?= $(firstword $(shell command -v python3.11 python3.12 python3.13 python3 2>/dev/null))
VENV ?= .venv
TORCH ?=
ARGS ?=
OLDEST := -W default -W ignore::DeprecationWarning -W ignore::FutureWarning # old packages on new ones warn of each other

ifeq ($(VENV),none) # the active environment, whose packages stay as they are
FOUND := $(shell python -c 'import pathlib, sys; print(pathlib.Path(sys.executable).parent)' 2>/dev/null)
BIN := $(or $(FOUND),$(error VENV=none takes the python of the path, and there is none; activate an environment first))
SETUP := .cache/installed$(subst /,-,$(BIN))
else
BIN := $(VENV)/bin
SETUP := $(VENV)/.installed
# uv leaves that to the first process, and where none may keep it, as in many images, to each
COMPILED := $(if $(PYTHONDONTWRITEBYTECODE),--compile-bytecode)
endif

UV := $(shell command -v uv 2>/dev/null)
ANY_UV = $(or $(UV),$(BIN)/uv)
INSTALL = $(if $(UV),$(UV) pip install --quiet $(COMPILED) --python $(BIN)/python,$(BIN)/python -m pip install --quiet --disable-pip-version-check)

# uv knows where PyTorch keeps its builds for the CPU alone
CPU_INSTALL = $(ANY_UV) pip install --quiet $(COMPILED) --python $(BIN)/python --torch-backend cpu
NEEDS_UV = test -n "$(UV)" || $(BIN)/python -m pip install --quiet uv

KNOWN_TORCH = $(if $(filter-out cpu,$(TORCH)),$(error TORCH=$(TORCH) is not known; TORCH=cpu is PyTorch without CUDA, otherwise the lock file decides))

ifdef DATA
SPEC ?= sweeps/explore.yaml
LOCAL_SWEEP = $(BIN)/finetune sweep "$(SPEC)" "data.root=$(DATA)" --out "runs/$(basename $(notdir $(SPEC)))-$(notdir $(patsubst %/,%,$(DATA)))"
else
SPEC ?= sweeps/local.yaml
LOCAL_SWEEP = $(BIN)/finetune sweep "$(SPEC)"
endif

.PHONY: help docs setup sweep-local agents test test-slow test-networks test-all test-oldest soak check lint format lock release clean
.DEFAULT_GOAL := help

help: ## print this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-12s %s\n", $$1, $$2}'

setup: $(SETUP) ## create .venv from the lock file; TORCH=cpu for 1 GB instead of 6; VENV=none for the active environment

# which is not there where an environment was made anew
$(BIN)/finetune: ;

.cache/installed%: pyproject.toml $(BIN)/finetune
	$(KNOWN_TORCH)
ifeq ($(TORCH),cpu)
	@$(NEEDS_UV)
	$(CPU_INSTALL) -e .
else
	$(INSTALL) -e .
endif
	@mkdir -p $(@D) && touch $@

$(VENV)/.installed: requirements.lock pyproject.toml
	$(KNOWN_TORCH)
	@"$(PYTHON)" -c 'import sys; sys.exit("Python 3.11 or newer is needed; set PYTHON=/path/to/it") if sys.version_info < (3, 11) else 0'
	"$(PYTHON)" -m venv $(VENV)
	@echo "installing the locked packages: a few minutes the first time"
ifeq ($(TORCH),cpu)
	@$(NEEDS_UV)
	grep -vE '^(nvidia|cuda|triton)' requirements.lock > $(VENV)/cpu.txt
	$(CPU_INSTALL) --no-deps -r $(VENV)/cpu.txt
else
	$(INSTALL) --no-deps -r requirements.lock
endif
	$(INSTALL) --no-deps --no-build-isolation -e .
	@touch $@

sweep-local: $(SETUP) ## run a sweep here; DATA=FOLDER for your images, SPEC=FILE for another sweep, ARGS="KEY=VALUE …"
	@$(LOCAL_SWEEP) $(ARGS)

agents: $(SETUP) ## run W&B agents here, one a GPU: SWEEP=ENTITY/PROJECT/ID
	@$(BIN)/finetune agent "$(or $(SWEEP),$(error give SWEEP=ENTITY/PROJECT/ID, as wandb sweep printed it))" $(ARGS)

test: $(SETUP) ## run the tests that show whether a change can be trusted, five minutes on two cores; ARGS="-n 8"
	$(BIN)/python -m pytest -n 2 --dist worksteal -m "not slow and not networks" $(ARGS)

test-slow: $(SETUP) ## run the others: kills at every point, every command of every document
	$(BIN)/python -m pytest -n 3 --dist worksteal -m slow $(ARGS)

test-networks: $(SETUP) ## freeze, cut, train and export every network that was tried, a quarter of an hour
	$(BIN)/python -m pytest -n 2 --dist worksteal -m networks $(ARGS)

test-all: test test-slow test-networks ## run all of them, three quarters of an hour

test-oldest: $(SETUP) ## run the fast tests on the lowest versions that pyproject.toml allows; needs 7 GB
	@$(NEEDS_UV)
	$(ANY_UV) venv --quiet --allow-existing --python 3.11 .venv-oldest
	$(ANY_UV) pip compile --quiet --python-version 3.11 --resolution lowest-direct --no-header --no-annotate pyproject.toml -o .venv-oldest/lowest.txt
	$(ANY_UV) pip install --quiet --python .venv-oldest/bin/python -r .venv-oldest/lowest.txt --constraint .venv-oldest/lowest.txt --group dev
	$(ANY_UV) pip install --quiet --python .venv-oldest/bin/python --no-deps --no-build-isolation -e .
	.venv-oldest/bin/python -m pytest -n 2 --dist worksteal -m "not slow and not networks" $(OLDEST) $(ARGS)

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
	@$(NEEDS_UV)
	echo '# Exact versions that the Makefile installs. Written by `make lock` from pyproject.toml.' > requirements.new
	$(ANY_UV) pip compile pyproject.toml --group dev --universal --python-version 3.11 --constraint constraints.txt \
	  --constraint requirements.lock --no-emit-index-url --no-header --no-annotate --quiet >> requirements.new
	mv requirements.new requirements.lock

docs: ## build the documents as a site, build/site/index.html, with the report of `make sweep-local` where there is one
	"$(PYTHON)" -m venv .venv-docs
	.venv-docs/bin/python -m pip install --quiet --upgrade 'pip>=25.1'
	.venv-docs/bin/python -m pip install --quiet --group docs
	.venv-docs/bin/python .ci/documents.py build/documents
	.venv-docs/bin/mkdocs build --quiet

release: $(SETUP) ## test, tag and build VERSION=0.2.0 into dist/; the tree must be clean, and the changelog have its section
	$(BIN)/python .ci/release.py "$(or $(VERSION),$(error give VERSION=0.2.0))"

clean: ## remove what the build made, not the runs
	rm -rf .venv .venv-oldest .venv-docs dist build .mypy_cache .ruff_cache .pytest_cache
