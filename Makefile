# Type `make` for what there is. Every target sets up what it needs, once.
SHELL := /bin/bash
.DEFAULT_GOAL := help
.PHONY: help setup engine bundle verify test lint bench clean

PYTHON ?= python3
TARGET ?= arm64
MODEL ?= mobilenet_v2
OUTPUT ?= dist
READY := .venv/.ready
# What is being fetched and what went wrong; pip's other lines would bury both.
INSTALL = set -o pipefail; .venv/bin/python -m pip install --disable-pip-version-check --progress-bar off
PROGRESS = 2> >(grep -v '^WARNING:' >&2) | sed -u -n -e 's/^ *Downloading /  /p' -e 's/^Installing collected packages.*/  installing …/p'

help: ## list what can be made
	@awk -F ':.*## ' '/^[a-z]+:.*## / {printf "  make %-8s %s\n", $$1, $$2}' $(MAKEFILE_LIST)
	@echo
	@echo "  make bundle TARGET=arm64 MODEL=mobilenet_v2 [MODE=int8-ptq] [WEIGHTS=file.pth] [CALIBRATION=folder]"
	@echo "              [INPUT_SIZE=224] [NUM_CLASSES=1000] [INT8_SCOPE=whole] [BASE_IMAGE=image] [OUTPUT=dist]"
	@echo "              [DATA=folder] [MAX_DROP=0.5] [PREPROCESSING='--mean 0 --std 1 --fit squash']"
	@echo "  make verify TARGET=x86 [OUTPUT=dist]"
	@echo "  make bench [MODEL=mobilenet_v2 WEIGHTS=file.pth CALIBRATION=folder DATA=folder [EMULATED=200] [ILL_SCALED=seed]]"
	@echo
	@echo "  BUNDLER_NO_SYSTEM=1 forbids every change to this machine outside the repository."

$(READY): pyproject.toml constraints.txt
	@echo "▸ Setting up .venv with the versions of constraints.txt (once)"
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "✗ $(PYTHON) is older than 3.11; next: make PYTHON=python3.11 …" >&2; exit 1; }
	@test -x .venv/bin/python || $(PYTHON) -m venv .venv 2>/dev/null || { \
	  if [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null && [ "$$BUNDLER_NO_SYSTEM" != 1 ]; then \
	    echo "▸ Installing python3-venv" && apt-get update -qq && apt-get install -qq -y python3-venv >/dev/null && rm -rf .venv && $(PYTHON) -m venv .venv; \
	  else echo "✗ $(PYTHON) has no venv module; next: apt-get install python3-venv" >&2; rm -rf .venv; exit 1; fi; }
	@# torch by itself and first: its CPU build satisfies the exact version, and nothing after it may pick another
	@$(INSTALL) --constraint constraints.txt "$$(grep '^torch==' constraints.txt)" $(PROGRESS)
	@$(INSTALL) --constraint constraints.txt --editable '.[dev]' $(PROGRESS)
	@touch $@

setup: $(READY) engine ## the virtual environment, the container engine and the emulator

engine: ## the container engine and the emulator (root on Debian or Ubuntu; otherwise prints the commands)
	@docker/setup-engine.sh || { code=$$?; [ "$(MAKECMDGOALS)" != engine ] || exit $$code; \
	  echo "! going on without: what needs an engine is recorded as not run" >&2; }

bundle: $(READY) engine ## build, quantize, prove and package MODEL for TARGET
	@.venv/bin/bundler bundle "$(MODEL)" --target "$(TARGET)" --output "$(OUTPUT)" $(foreach mode,$(MODE),--mode "$(mode)") \
	  $(if $(WEIGHTS),--weights "$(WEIGHTS)") $(if $(CALIBRATION),--calibration "$(CALIBRATION)") \
	  $(if $(INT8_SCOPE),--int8-scope "$(INT8_SCOPE)") $(if $(INPUT_SIZE),--input-size "$(INPUT_SIZE)") $(if $(NUM_CLASSES),--num-classes "$(NUM_CLASSES)") \
	  $(PREPROCESSING) $(if $(DATA),--data "$(DATA)") $(if $(MAX_DROP),--max-drop "$(MAX_DROP)") \
	  $(if $(BASE_IMAGE),--base-image "$(BASE_IMAGE)")

verify: $(READY) engine ## prove every bundle for TARGET again
	@.venv/bin/bundler verify --target "$(TARGET)" --output "$(OUTPUT)"

test: lint engine ## linters, types, import rules, and every test; needs an engine for those in containers
	@.venv/bin/python -m pytest --numprocesses auto

lint: $(READY) ## ruff, mypy and the import ladder
	@.venv/bin/ruff check .
	@.venv/bin/ruff format --check .
	@.venv/bin/mypy
	@.venv/bin/lint-imports --no-logo >/dev/null || .venv/bin/lint-imports

bench: $(READY) engine ## how long things take; with MODEL, WEIGHTS, CALIBRATION and DATA, how accurate INT8 is beside quantize_static
	@$(if $(DATA),.venv/bin/python tests/benchmark/accuracy.py "$(MODEL)" --weights "$(WEIGHTS)" --calibration "$(CALIBRATION)" --data "$(DATA)" \
	  $(if $(INPUT_SIZE),--input-size "$(INPUT_SIZE)") $(if $(NUM_CLASSES),--num-classes "$(NUM_CLASSES)") \
	  $(if $(EMULATED),--emulated "$(EMULATED)") $(if $(ILL_SCALED),--ill-scaled "$(ILL_SCALED)"),.venv/bin/python tests/benchmark/bench.py)

clean: ## remove .venv, dist and caches of the repository; the system and the engine's images stay
	rm -rf .venv dist .mypy_cache .ruff_cache .pytest_cache .hypothesis
