# One word a target. `make demo` and `make test` install everything they need on a fresh machine.
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help

PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
ARGS   ?=
LAB    ?=

STAMP := $(VENV)/.installed

.PHONY: help
help: ## this list
	@grep -hE '^[a-z0-9-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

$(STAMP): pyproject.toml
	@test -x $(BIN)/python || tools/make-venv $(PYTHON) -m venv $(VENV) >&2
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --upgrade pip >&2
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[lab,test]' >&2
	@touch $@

.PHONY: deps
deps: $(STAMP)
	@tools/install-packages $(PACKAGES) >&2

# What each target needs from the distribution, by command: tools/install-packages knows the package of each.
demo: PACKAGES := ip nft ping
test e2e: PACKAGES := ip nft iptables ping iperf3 wg wireguard-go ethtool sysctl
bench: PACKAGES := ip nft ping iperf3 wg wireguard-go sysctl
lab-up: PACKAGES := ip nft ping

.PHONY: demo
demo: deps ## the whole paper in one command (ARGS=--json for one JSON object)
	@$(BIN)/python -m lab demo $(ARGS)

.PHONY: lint
lint: $(STAMP) ## static checks alone
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/codespell

.PHONY: unit
unit: $(STAMP)
	$(BIN)/coverage erase
	$(BIN)/coverage run -m pytest tests/unit tests/architecture $(ARGS)
	$(BIN)/coverage combine --quiet
	$(BIN)/python tests/module_coverage.py

.PHONY: check
check: lint unit ## static checks, unit tests, coverage of each core module by its own test file

.PHONY: test
test: deps ## everything but the QEMU guests: unit, architecture, packaging, e2e on network namespaces, with coverage
	$(BIN)/coverage erase
	$(BIN)/coverage run -m pytest tests/unit tests/architecture tests/packaging tests/e2e --ignore=tests/e2e/test_launch.py $(ARGS)
	$(BIN)/coverage combine --quiet
	$(BIN)/python tests/module_coverage.py
	$(BIN)/coverage report --skip-covered --fail-under=90

.PHONY: e2e
e2e: deps ## the behaviour suite on one backend (LAB=netns|pair|guest|…)
	LAB=$(or $(LAB),netns) $(BIN)/python -m pytest tests/e2e $(ARGS)

.PHONY: lab-up lab-down
lab-up: deps ## bring a lab up and leave it running (LAB=name forces a backend, else the best that runs here)
	@LAB=$(LAB) $(BIN)/python -m lab up $(ARGS)
lab-down: $(STAMP) ## take it away again
	@$(BIN)/python -m lab down $(ARGS)

.PHONY: bench
bench: deps ## A/B benchmarks against every peer that is installed (ARGS="--quick --json")
	@$(BIN)/python -m benchmarks $(ARGS)

.PHONY: fuzz
fuzz: $(STAMP) ## every fuzz target for SECONDS (60) each
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check '.[fuzz]' >&2
	@for target in fuzz/fuzz_*.py; do echo "== $$target"; $(BIN)/python $$target -max_total_time=$${SECONDS_EACH:-60} -rss_limit_mb=512 $(ARGS); done

.PHONY: docs
docs: $(STAMP) ## the documentation as a site, warnings are errors
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check '.[docs]' >&2
	$(BIN)/mkdocs build --strict --quiet

.PHONY: build
build: $(STAMP) ## sdist and wheel
	$(BIN)/python -m build --outdir dist .

.PHONY: clean
clean: ## take everything built away
	rm -rf $(VENV) build dist site artifacts .coverage* htmlcov *.egg-info
