# `make` lists what can be made. Every target sets up what it needs, once.
SHELL := /bin/bash
.DEFAULT_GOAL := help
.PHONY: help setup engine bundle verify doctor test coverage lint format schema docs bench clean

PYTHON ?= python3
TARGET ?= arm64
MODEL ?= mobilenet_v2
OUTPUT ?= dist

# The variables of `make bundle` and `make verify`, and the options of `bundler` that they become. The recipes, `make help` and
# docs/reference/make.md are made from these lists; tests/test_makefile.py compares them with the commands.
BUNDLE_OPTIONS := \
	TARGET=--target MODE=--mode INT8_SCOPE=--int8-scope WEIGHTS=--weights WEIGHTS_KEY=--weights-key CFG=--cfg \
	CALIBRATION=--calibration CALIBRATION_IMAGES=--calibration-images BATCH_SIZE=--batch-size DATA=--data MAX_DROP=--max-drop \
	EPOCHS=--epochs LEARNING_RATE=--learning-rate NUM_CLASSES=--num-classes INPUT_SIZE=--input-size MEAN=--mean STD=--std \
	RESIZE=--resize CROP=--crop FIT=--fit CHANNELS=--channels INTERPOLATION=--interpolation BASE_IMAGE=--base-image TAG=--tag \
	OUTPUT=--output SEED=--seed
VERIFY_OPTIONS := TARGET=--target OUTPUT=--output BASE_IMAGE=--base-image
BENCH_OPTIONS := \
	WEIGHTS=--weights CALIBRATION=--calibration DATA=--data INPUT_SIZE=--input-size NUM_CLASSES=--num-classes \
	EMULATED=--emulated ILL_SCALED=--ill-scaled
BUNDLE_FLAGS := JSON=--json
VERIFY_FLAGS := TRUST_BUNDLE=--trust-bundle EXPLAIN=--explain JSON=--json

variable = $(firstword $(subst =, ,$(1)))
option = $(lastword $(subst =, ,$(1)))
# $(call options,LIST): the options of the variables that have a value; MODE="fp32 int8-qat" becomes two options.
options = $(foreach pair,$(1),$(if $($(call variable,$(pair))),$(if $(filter MODE=%,$(pair)),$(foreach mode,$(MODE),--mode "$(mode)"),$(call option,$(pair)) "$($(call variable,$(pair)))")))
flags = $(foreach pair,$(1),$(if $(filter 1,$($(call variable,$(pair)))),$(call option,$(pair))))

READY := .venv/.ready
# Downloads and errors are shown; pip's other lines are not.
INSTALL = set -o pipefail; .venv/bin/python -m pip install --disable-pip-version-check --progress-bar off
PROGRESS = 2> >(grep -v '^WARNING:' >&2) | sed -u -n -e 's/^ *Downloading /  /p' -e 's/^Installing collected packages.*/  installing …/p'
# `make test` asks before it installs system packages; the other targets were asked for what they install.
ASK = $(if $(filter test coverage,$(MAKECMDGOALS)),docker/ask-to-install.sh,true)

help: ## list the targets and their variables
	@awk -F ':.*## ' '/^[a-z]+:.*## / {printf "  make %-8s %s\n", $$1, $$2}' $(MAKEFILE_LIST)
	@echo
	@echo "  Example: make bundle TARGET=arm64 MODEL=mobilenet_v2 CALIBRATION=images/"
	@echo
	@echo "  Variables of make bundle, and the options of \`bundler bundle\` that they become (\`bundler bundle --help\`):"
	@echo "  MODEL is its argument; MODE may hold several names; JSON=1 is --json."
	@printf '    %-20s %s\n' $(foreach pair,$(BUNDLE_OPTIONS) $(BUNDLE_FLAGS),$(call variable,$(pair)) $(call option,$(pair)))
	@echo
	@echo "  Variables of make verify: $(foreach pair,$(VERIFY_OPTIONS),$(call variable,$(pair))) $(foreach pair,$(VERIFY_FLAGS),$(call variable,$(pair))=1)"
	@echo "  Variables of make bench:  MODEL $(foreach pair,$(BENCH_OPTIONS),$(call variable,$(pair)))"
	@echo
	@echo "  BUNDLER_NO_SYSTEM=1 forbids every change to this machine outside the repository."

$(READY): pyproject.toml constraints.txt
	@echo "▸ Setting up .venv with the versions of constraints.txt (once)"
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "✗ $(PYTHON) is older than 3.11; next: make PYTHON=python3.11 …" >&2; exit 1; }
	@test -x .venv/bin/python || $(PYTHON) -m venv .venv 2>/dev/null || { \
	  if [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null && [ "$$BUNDLER_NO_SYSTEM" != 1 ] && $(ASK) python3-venv; then \
	    echo "▸ Installing python3-venv" && apt-get update -qq && apt-get install -qq -y python3-venv >/dev/null && rm -rf .venv && $(PYTHON) -m venv .venv; \
	  else echo "✗ $(PYTHON) has no venv module; next: apt-get install python3-venv" >&2; rm -rf .venv; exit 1; fi; }
	@# torch by itself and first: its CPU build satisfies the exact version, and nothing after it may pick another
	@$(INSTALL) --constraint constraints.txt "$$(grep '^torch==' constraints.txt)" $(PROGRESS)
	@$(INSTALL) --constraint constraints.txt --editable '.[dev]' $(PROGRESS)
	@touch $@

setup: $(READY) engine ## the virtual environment, the container engine and the emulators

engine: ## the container engine and the emulators (root on Debian or Ubuntu; otherwise prints the commands to type)
	@docker/setup-engine.sh --check >/dev/null 2>&1 || $(ASK) "a container engine and QEMU" || export BUNDLER_NO_SYSTEM=1; \
	  docker/setup-engine.sh || { code=$$?; [ "$(MAKECMDGOALS)" != engine ] || exit $$code; \
	  echo "! continuing without them: what needs them is not executed, and reported as such" >&2; }

bundle: $(READY) engine ## build, quantize, verify and package MODEL for TARGET
	@set -x; .venv/bin/bundler bundle "$(MODEL)" $(call options,$(BUNDLE_OPTIONS)) $(PREPROCESSING) $(call flags,$(BUNDLE_FLAGS))

verify: $(READY) engine ## verify every bundle for TARGET again
	@set -x; .venv/bin/bundler verify $(call options,$(VERIFY_OPTIONS)) $(call flags,$(VERIFY_FLAGS))

doctor: $(READY) ## check what works on this machine
	@.venv/bin/bundler doctor

test: lint engine ## linters, types, import layers, and every test; asks before it installs system packages
	@.venv/bin/python -m pytest --numprocesses auto

coverage: $(READY) engine ## every test, with the branch coverage of the package
	@.venv/bin/python -m pytest --numprocesses auto --cov --cov-report=term

lint: $(READY) ## ruff, mypy and import-linter
	@.venv/bin/ruff check .
	@.venv/bin/ruff format --check .
	@.venv/bin/mypy
	@.venv/bin/lint-imports --no-logo >/dev/null || .venv/bin/lint-imports

format: $(READY) ## format the code and repair what ruff can
	@.venv/bin/ruff check --fix .
	@.venv/bin/ruff format .

schema: $(READY) ## write schemas/manifest.schema.json from the manifest's types
	@.venv/bin/python -c "from pathlib import Path; from bundler.manifest import json_schema; Path('schemas/manifest.schema.json').write_text(json_schema(), encoding='utf-8')"

docs: $(READY) ## write the generated pages of docs/
	@.venv/bin/python docs/generate.py

bench: $(READY) engine ## how long things take; with DATA, the accuracy of INT8 beside quantize_static
	@.venv/bin/python $(if $(DATA),tests/benchmark/accuracy.py "$(MODEL)" $(call options,$(BENCH_OPTIONS)),tests/benchmark/bench.py)

clean: ## remove .venv, dist and caches of the repository; system packages and images in the engine are kept
	rm -rf .venv dist .mypy_cache .ruff_cache .pytest_cache .hypothesis .coverage .coverage.* htmlcov
