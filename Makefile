# `make demo` and `make test` install everything they need on a fresh machine.
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
MAKEFLAGS += --no-print-directory

# The distribution's interpreter is optimised with a profile. A self-compiled one usually is not, and is a tenth slower when
# the processor's caches are cold. Any Python from 3.11 on works.
PYTHON ?= $(shell /usr/bin/python3 -c 'import sys; assert sys.version_info >= (3, 11); print(sys.executable)' 2>/dev/null || echo python3)
VENV   ?= .venv
BIN    := $(VENV)/bin
ARGS   ?=
LAB    ?=
TESTS  ?= tests/e2e

STAMP := $(VENV)/.installed

# A newer Python than the machine's own, from a Debian suite.
SUITE ?= trixie
NEWER := .python-$(SUITE)
PIP   := $(BIN)/python -m pip
# The compiled build, beside the checkout, which stays pure Python.
COMPILED := .compiled
# An incomplete install, or one whose interpreter has gone with a distribution upgrade, does not count.
$(shell test ! -e $(STAMP) || $(BIN)/wgvsock --version >/dev/null 2>&1 || rm -f $(STAMP))

# One worker per processor, each with its own laboratory. The tests of one file share its fixtures, so they stay together.
PARALLEL := -n auto --maxprocesses 8 --dist loadfile --no-loadscope-reorder
# Boot, provisioning, egress and ingress over AF_VSOCK, with captures at each point.
FLOWS := tests/e2e/test_egress_lifecycle.py tests/e2e/test_ingress_lifecycle.py

.PHONY: help
help: ## this list
	@grep -hE '^[a-z0-9-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

$(STAMP): pyproject.toml
	@tools/make-venv $(PYTHON) $(VENV) >&2
	@$(PIP) install -qq --disable-pip-version-check --upgrade pip >&2
	@$(PIP) install -qq --disable-pip-version-check --editable '.[lab,test]' >&2
	@touch $@

$(NEWER)/.installed: pyproject.toml tools/python-of | $(STAMP)
	@tools/python-of $(SUITE) $(NEWER) >&2
	@$(PIP) --python $(NEWER)/bin/python install -qq --disable-pip-version-check --editable '.[lab,test]' >&2
	@touch $@

$(COMPILED)/.installed: setup.py pyproject.toml $(shell find wgvsock -name '*.py') | deps
	@rm -rf $(COMPILED)
	@WGVSOCK_COMPILE=1 $(PIP) install -qq --disable-pip-version-check --no-deps --target $(COMPILED) . >&2
	@rm $(COMPILED)/wgvsock/build.json  # so that its tests take it for a checkout
	@touch $@

$(VENV)/.deploy: pyproject.toml $(STAMP)
	@$(PIP) install -qq --disable-pip-version-check --editable '.[deploy]' >&2
	@touch $@

$(BIN)/promtool: $(STAMP)
	@tools/promtool $@ >&2

.PHONY: deps
deps: $(STAMP)
	@tools/install-packages $(PACKAGES) >&2

# What each target needs from the distribution, by command. tools/install-packages knows the package of each command.
demo soak: PACKAGES := ip nft ping
try: PACKAGES := ip nft ping curl
test test-netns test-pair test-launch e2e: PACKAGES := ip nft iptables ping iperf3 wg wireguard-go ethtool sysctl dig curl slirp4netns tshark
compiled unit-compiled: PACKAGES := cc python3-config
bench bench-compiled: PACKAGES := ip nft ping iperf3 wg wireguard-go sysctl slirp4netns
bench-compiled: PACKAGES += cc python3-config
image test-deploy: PACKAGES := podman runc mmdebstrap git
lab-up prepare example: PACKAGES := ip nft ping
ifeq ($(LAB),container)
e2e prepare lab-up: PACKAGES := ip nft iptables ping iperf3 wg wireguard-go ethtool sysctl podman runc mmdebstrap git
e2e prepare lab-up: $(VENV)/.deploy
endif

.PHONY: demo
demo: deps ## the whole paper in one command (ARGS=--json for one JSON object)
	@$(BIN)/python -m lab demo $(ARGS)

.PHONY: try
try: deps ## a relay and an enclave without Nitro, in steps that you could type, in seconds; leaves a shell
	@$(BIN)/python -m lab try $(ARGS)

.PHONY: lint
lint: $(STAMP) ## static checks only
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

.PHONY: unit-newest
unit-newest: $(NEWER)/.installed ## unit tests on Debian trixie's Python, independent of the machine's (SUITE=forky: on forky's)
	@$(NEWER)/bin/python -VV
	$(NEWER)/bin/python -m pytest $(PARALLEL) tests/unit tests/architecture $(ARGS)

.PHONY: compiled
compiled: $(COMPILED)/.installed ## compile what a packet meets, for the tests and the bench

.PHONY: unit-compiled
unit-compiled: $(COMPILED)/.installed ## unit tests on the compiled build (needs a C compiler and Python's headers)
	PYTHONPATH=$(CURDIR)/$(COMPILED) $(BIN)/pytest -o "pythonpath=$(COMPILED) ." $(PARALLEL) tests/unit $(ARGS)

.PHONY: check
check: lint unit ## static checks and unit tests

.PHONY: test
test: deps ## all fast tests: unit, packaging, the behaviour suite in network namespaces, the main flows in QEMU guests
	@tools/stages \
	    "4 make unit # unit and architecture tests" \
	    "1 make test-packaging # packaging tests" \
	    "12 make test-netns # behaviour suite on netns" \
	    "1 make test-pair # main flows on pair" \
	    "2 make test-launch # launch by nitro-cli"

# The stages of `make test`, one by one.
.PHONY: test-packaging test-netns test-pair test-launch
test-packaging: $(STAMP)
	@$(BIN)/pytest tests/packaging $(ARGS)
test-netns: deps
	@LAB=netns $(BIN)/pytest $(PARALLEL) --timeout=600 tests/e2e --ignore=tests/e2e/test_launch.py $(ARGS)
test-pair: deps
	@LAB=pair $(BIN)/pytest $(FLOWS) $(ARGS)
test-launch: deps
	@LAB=netns $(BIN)/pytest tests/e2e/test_launch.py $(ARGS)

.PHONY: e2e
e2e: deps ## the behaviour suite on one backend (LAB=netns|pair|guest|…), or the files of TESTS
	LAB=$(or $(LAB),netns) $(BIN)/python -m pytest $(if $(filter nested,$(LAB)),,$(PARALLEL)) $(TESTS) $(ARGS)

.PHONY: prepare
prepare: deps ## download and build what a backend needs, without starting it (LAB=name)
	@LAB=$(LAB) $(BIN)/python -m lab prepare $(ARGS)

.PHONY: lab-up lab-down
lab-up: deps ## start a lab and leave it running (LAB=name forces a backend, otherwise the best that runs here)
	@LAB=$(LAB) $(BIN)/python -m lab up $(ARGS)
lab-down: $(STAMP) ## stop and remove it
	@$(BIN)/python -m lab down $(ARGS)

.PHONY: bench bench-compiled
bench: deps ## A/B benchmarks against every peer and every limit available here (ARGS="--quick --json")
bench-compiled: deps $(COMPILED)/.installed ## the same with the compiled build as one more contestant
bench-compiled: BUILD := --compiled $(COMPILED)
bench bench-compiled:
	@! command -v cc >/dev/null || test -e /usr/include/openssl/evp.h || tools/apt-install libssl-dev >&2 || :
	@$(BIN)/python -m benchmarks $(BUILD) $(ARGS)

.PHONY: soak
MINUTES ?= 20
soak: deps ## mixed traffic, churn and attestations for MINUTES (20, at least 3); fails if memory, descriptors, tasks, … grow
	@$(BIN)/python -m lab soak --minutes $(MINUTES)

.PHONY: fuzz
fuzz: $(STAMP) ## every fuzz target for SECONDS_EACH (60)
	@$(PIP) install -qq --disable-pip-version-check --editable '.[fuzz]' >&2
	@for target in fuzz/fuzz_*.py; do echo "== $$target"; $(BIN)/python $$target -max_total_time=$${SECONDS_EACH:-60} -rss_limit_mb=512 $(ARGS); done

$(VENV)/.docs: pyproject.toml $(STAMP)
	@$(PIP) install -qq --disable-pip-version-check --editable '.[docs]' >&2
	@touch $@

.PHONY: docs manuals
docs: $(VENV)/.docs ## the documentation as a site, with warnings as errors; its links, commands and generated pages are tested
	@NO_COLOR=1 $(BIN)/zensical build --clean --strict
	@$(BIN)/pytest tests/docs $(ARGS)

manuals: $(VENV)/.docs ## regenerate man pages and shell completions from the commands
	$(BIN)/python tools/manuals.py

.PHONY: build
build: $(STAMP) ## sdist and wheel, byte-identical for the same commit
	tools/build $(BIN)/python dist

.PHONY: manifests
manifests: $(VENV)/.deploy ## render every overlay of deploy/, and report what an API server would refuse (ARGS=your/overlay)
	@$(BIN)/python -m lab.manifests $(ARGS)

.PHONY: test-deploy
test-deploy: deps $(VENV)/.deploy $(BIN)/promtool ## images, manifests, alert rules and units of deploy/, as far as one machine can test them
	@$(BIN)/pytest $(PARALLEL) tests/deploy $(ARGS)

.PHONY: example
NAME ?= hello-enclave
example: deps ## the commands of an example, from building its enclave to its answer (NAME=hello-enclave)
	@$(BIN)/python -m lab.cli.example $(NAME)

.PHONY: image
image: deps ## images of relay and enclave base in dist/images, the same ID for the same commit (ARGS=--sbom)
	@deploy/image/build $(BIN)/python dist/images $(ARGS)

.PHONY: clean
clean: ## remove everything that was built
	rm -rf $(VENV) $(COMPILED) .python-* build dist site .cache artifacts .coverage* htmlcov *.egg-info
