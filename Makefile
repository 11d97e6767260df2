# `make demo` and `make test` do all their own set-up; nothing but Python 3.11 or 3.12 and a registry is needed.
PYTHON ?= $(shell command -v python3.11 || command -v python3.12 || command -v python3)
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.PHONY: help install demo test test-slow explore test-containers chaos benchmark-demo images lint format settings lock clean
help:  ## list the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*## /\t/'

install: $(STAMP)  ## make .venv with the exact versions of constraints.txt

# torch goes first and alone, in this spelling: it then satisfies everybody, and nothing pulls a CUDA build. Its builds
# for processors and for GPUs are different files under one version, so it alone is not held to a hash.
$(STAMP): pyproject.toml constraints.txt constraints-dev.txt
	@$(PYTHON) -c 'import sys; v = sys.version_info; sys.exit(0 if (3, 11) <= v < (3, 13) else "Python %d.%d: expected 3.11 or 3.12. Set PYTHON=/path/to/python3.11." % v[:2])'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check torch==2.13.0
	$(BIN)/pip install --quiet --disable-pip-version-check --no-deps --require-hashes -r constraints.txt -r constraints-dev.txt
	$(BIN)/pip install --quiet --disable-pip-version-check --no-deps --editable .
	@touch $@

demo: install  ## four simulated hospitals, from recordings to a report (about 3 minutes)
	$(BIN)/fedbrainlm demo

# A process of tests for each processor, and one thread in each.
test: install  ## the fast tests, and one real `flwr run` simulation
	OMP_NUM_THREADS=1 $(BIN)/pytest -m 'not slow' --numprocesses auto --dist loadscope

test-slow: install  ## killed commands, and deployed federations of real processes (nginx for one of them; 20 minutes or more)
	$(BIN)/pytest -m slow --ignore tests/chaos --ignore tests/docker

explore: install  ## property tests on ever new examples, until one fails (write it down as an @example) or you stop it
	@pass=1; while echo "pass $$pass" && $(BIN)/pytest -m 'hypothesis and not slow' --hypothesis-profile explore -x; do pass=$$((pass + 1)); done; exit 1

chaos: install  ## the fault matrix: processes killed, links cut, disks full, strangers at the door (root; 25 minutes or more)
	$(BIN)/pytest -m slow tests/chaos tests/integration/test_federation.py
	@cat runs/chaos.json

benchmark-demo: install  ## time the demo's stages
	$(BIN)/python benchmarks/demo.py

# ENGINE=docker where that is what you have. podman keeps health checks in Docker's format alone.
ENGINE ?= $(shell command -v podman || command -v docker)
# An image has no git: version and commit are told.
VERSION = $(or $(patsubst v%,%,$(shell git describe --tags --abbrev=0 2>/dev/null)),0.1.0)
TOLD = --build-arg VERSION=$(VERSION) --build-arg COMMIT=$(shell git rev-parse HEAD 2>/dev/null)
BUILD = $(ENGINE) build $(if $(findstring podman,$(ENGINE)),--format docker) $(TOLD) $(BUILD_OPTIONS) --file docker/Dockerfile
images:  ## build the images of coordinator and site; BUILD_OPTIONS="--build-arg PIP_EXTRA_INDEX_URL=" for GPUs
	$(BUILD) --target coordinator --tag fedbrainlm-coordinator .
	$(BUILD) --target site --tag fedbrainlm-site .

test-containers: install $(if $(ENGINE),images)  ## a federation in containers; skipped where there is no engine (10 minutes)
	$(BIN)/pytest -m 'slow or not slow' -rs tests/docker

lint: install  ## ruff and mypy
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: install  ## format and fix
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

settings: install  ## write docs/settings.md from the settings themselves
	$(BIN)/python docs/settings_page.py

# Pins stay as they are; LOCK_OPTIONS=--upgrade takes the newest that the ranges of pyproject.toml allow.
LOCK = $(BIN)/uv pip compile --quiet pyproject.toml --python-version 3.11 --generate-hashes --no-annotate \
	--custom-compile-command 'make lock' --no-emit-package torch --no-emit-package fedbrainlm $(LOCK_OPTIONS)
lock: install  ## write constraints.txt ([federation]) and constraints-dev.txt (what [dev] adds), with hashes
	$(LOCK) --extra federation --output-file constraints.txt
	$(LOCK) --extra dev --constraint constraints.txt --output-file constraints-dev.txt \
		$$(sed -n 's/^\([A-Za-z0-9_.-]*\)==.*/--no-emit-package \1/p' constraints.txt)

clean:  ## remove what the targets made
	rm -rf $(VENV) runs .pytest_cache .mypy_cache .ruff_cache .hypothesis *.egg-info
