# One word a target. `make demo` and `make test` install everything they need on a fresh machine.
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help

# The distribution's interpreter is optimised with a profile; one that was compiled at home mostly is not, and is a tenth
# slower where the processor's caches are cold. Any Python from 3.11 on will do.
PYTHON ?= $(shell /usr/bin/python3 -c 'import sys; assert sys.version_info >= (3, 11); print(sys.executable)' 2>/dev/null || echo python3)
VENV   ?= .venv
BIN    := $(VENV)/bin
ARGS   ?=
LAB    ?=
TESTS  ?= tests/e2e

STAMP := $(VENV)/.installed

# One worker a processor, each with a laboratory of its own. What only has meaning together (a file's fixtures) stays together.
PARALLEL := -n auto --maxprocesses 8 --dist loadfile --no-loadscope-reorder
# Boot, provisioning, egress and ingress over AF_VSOCK, with captures at each point.
FLOWS := tests/e2e/test_egress_lifecycle.py tests/e2e/test_ingress_lifecycle.py

.PHONY: help
help: ## this list
	@grep -hE '^[a-z0-9-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

$(STAMP): pyproject.toml
	@test -x $(BIN)/python || tools/make-venv $(PYTHON) -m venv $(VENV) >&2
	@$(BIN)/python -m pip install -qq --disable-pip-version-check --upgrade pip >&2
	@$(BIN)/python -m pip install -qq --disable-pip-version-check --editable '.[lab,test]' >&2
	@touch $@

.PHONY: deps
deps: $(STAMP)
	@tools/install-packages $(PACKAGES) >&2

# What each target needs from the distribution, by command: tools/install-packages knows the package of each.
demo: PACKAGES := ip nft ping
test e2e: PACKAGES := ip nft iptables ping iperf3 wg wireguard-go ethtool sysctl
bench: PACKAGES := ip nft ping iperf3 wg wireguard-go sysctl
lab-up prepare: PACKAGES := ip nft ping

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
unit: $(STAMP) ## unit tests, with coverage of each core module by its own test file and of all of wgvsock
	@$(BIN)/coverage erase
	$(BIN)/coverage run -m pytest $(PARALLEL) tests/unit tests/architecture $(ARGS)
	@$(BIN)/coverage combine --quiet
	$(BIN)/python tests/module_coverage.py
	$(BIN)/coverage report --skip-covered --fail-under=90

.PHONY: check
check: lint unit ## static checks and unit tests

.PHONY: test
test: deps ## everything that is quick: unit, packaging, the behaviour suite on network namespaces, the main flows in QEMU guests
	@tools/stage "unit and architecture tests" $(MAKE) --no-print-directory unit
	@tools/stage "packaging tests" $(BIN)/pytest tests/packaging $(ARGS)
	@tools/stage "behaviour suite on netns" env LAB=netns $(BIN)/pytest $(PARALLEL) tests/e2e --ignore=tests/e2e/test_launch.py $(ARGS)
	@tools/stage "main flows on pair" env LAB=pair $(BIN)/pytest $(FLOWS) $(ARGS)
	@tools/stage "launch by nitro-cli" env LAB=netns $(BIN)/pytest tests/e2e/test_launch.py $(ARGS)

.PHONY: e2e
e2e: deps ## the behaviour suite on one backend (LAB=netns|pair|guest|…), or the files of TESTS
	LAB=$(or $(LAB),netns) $(BIN)/python -m pytest $(if $(filter nested,$(LAB)),,$(PARALLEL)) $(TESTS) $(ARGS)

.PHONY: prepare
prepare: deps ## download and build what a backend needs, and raise nothing (LAB=name)
	@LAB=$(LAB) $(BIN)/python -m lab prepare $(ARGS)

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
	@$(BIN)/python -m pip install -qq --disable-pip-version-check --editable '.[fuzz]' >&2
	@for target in fuzz/fuzz_*.py; do echo "== $$target"; $(BIN)/python $$target -max_total_time=$${SECONDS_EACH:-60} -rss_limit_mb=512 $(ARGS); done

.PHONY: docs
docs: $(STAMP) ## the documentation as a site, warnings are errors
	@$(BIN)/python -m pip install -qq --disable-pip-version-check --editable '.[docs]' >&2
	$(BIN)/mkdocs build --strict --quiet

.PHONY: build
build: $(STAMP) ## sdist and wheel
	$(BIN)/python -m build --outdir dist .

.PHONY: clean
clean: ## take everything built away
	rm -rf $(VENV) build dist site artifacts .coverage* htmlcov *.egg-info
