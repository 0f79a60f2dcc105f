# make reproduce | make repro | make pull | make test | make test-all | make setup | make lint | make lock | make bench. Everything runs in .venv.

CONFIG ?= config/mini.yaml
DATASET ?= cifar10
PYTHON := .venv/bin/python
export PATH := $(CURDIR)/.venv/bin:$(PATH)
SHELL := /bin/bash
# A cluster's module of Python may set them: another Python's packages would come before those of .venv.
unexport PYTHONHOME PYTHONPATH PYTHONSAFEPATH
# Containers set it. Each of a run's hundred processes would compile our modules again: half a second.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: reproduce repro pull setup test test-all test-processes test-versions test-browser test-slurm durations lint docs lock bench shards clean

# Results in results/NAME, beside those that git has (python -m workflow.reproduce --help).
reproduce: $(CONFIG) setup
	@$(PREFLIGHT) run
	@python -m workflow.reproduce $(CONFIG)

%.yaml: # a config that is not there, told before anything is installed
	@echo "error: $@ does not exist: config has $(notdir $(wildcard config/*.yaml))" >&2; exit 1

# The same, versioned: make repro, dvc push, git commit. A clone's way to the results: make pull.
repro: setup
	@python -m workflow.scripts.versioned unlock
	dvc repro

pull: setup
	@python -m workflow.scripts.versioned unlock
	dvc pull --with-deps tables-$(basename $(notdir $(CONFIG)))
	python -m workflow.scripts.versioned settle

setup: .venv/complete

# What a machine lacks, in one line: any python3 can say it.
PREFLIGHT := python3 -c 'import sys; sys.exit(sys.version_info < (3, 6))' 2>/dev/null || { \
	echo "error: there is no python3 (3.6 or newer) here: install it (apt-get install python3)" >&2; exit 1; }; \
	python3 workflow/scripts/preflight.py

# The stamp is written last: an interrupted installation is finished by the next make.
# uv doesn't compile by itself: the first job's imports would take 22 s instead of 7.
.venv/complete: requirements.lock
	@$(PREFLIGHT) install
	@here=$$(python3 -m site --user-base)/bin/uv; \
	if uv=$$(command -v uv || command -v $$here) || { python3 -m pip install --quiet --user uv 2>/dev/null && uv=$$here; }; then \
	  [ -x $(PYTHON) ] || $$uv venv --quiet --python 3.11 .venv 2>/dev/null || $$uv venv --quiet --python ">=3.12,<3.14" .venv 2>/dev/null || { \
	    echo "error: there is no Python 3.11 to 3.13 here, and uv can fetch none (from github.com): install python3.11, or export UV_PYTHON_INSTALL_MIRROR" >&2; exit 1; }; \
	  echo "installing the packages of requirements.lock into .venv: a minute or three"; \
	  $$uv pip install --quiet --compile-bytecode --python $(PYTHON) --requirement requirements.lock; \
	else \
	  python=$$(command -v $(PYTHON) || command -v python3.11) || { \
	    echo "error: there is neither uv nor Python 3.11 here, and pip may not install uv: install one of them (https://docs.astral.sh/uv, or python3.11 with venv)" >&2; exit 1; }; \
	  [ -x $(PYTHON) ] || $$python -m venv .venv || { rm -rf .venv; exit 1; }; \
	  $(PYTHON) -m ensurepip >/dev/null; $(PYTHON) -m pip install --requirement requirements.lock; \
	fi
	@ln -sf ../../workflow/scripts/ijepa-bench .venv/bin/ijepa-bench
	@touch $@

# Tests of one thread each, so many at a time.
WORKERS ?= 2
PYTEST := python -m pytest
PARALLEL := -n $(WORKERS) --dist worksteal

# TIERS: those of other marks beside, in one session: each process of pytest takes 20 s to import what it tests.
test: setup
	$(PYTEST) $(PARALLEL) $(if $(TIERS),-m "$(TIERS)")

test-all: setup
	$(MAKE) test TIERS="not (browser or slurm)"
	$(MAKE) test-browser test-slurm

# Only the files that have tests of a tier: pytest imports all that it is given, some 20 s for each process.
files_with = $(shell grep -l 'mark.$(1)' tests/test_*.py)

# Tests that start whole programs or kill them; the default tier has one for each feature.
test-processes: setup
	$(PYTEST) $(PARALLEL) -m processes $(call files_with,processes)

# One browser for a file of tests: one after the other. It skips without Debian's chromium.
test-browser: setup
	$(PYTEST) -m browser $(call files_with,browser)

# Workers share the repository that DVC versions (tests/versions/conftest.py).
test-versions: setup
	$(PYTEST) $(PARALLEL) -m versions tests/versions

# A real Slurm on this machine, from Debian's packages (root installs them; else it says that it skips).
test-slurm: setup
	$(PYTEST) -m slurm tests/slurm

# Writes tests/durations.csv, after a change that makes tests slower or faster.
durations: setup
	$(PYTEST) $(PARALLEL) --record-durations -m "not (browser or slurm or versions)"

lint: setup
	ruff format --check .
	ruff check .
	mypy
	lint-imports
	codespell
	snakefmt --check Snakefile workflow
	python workflow/scripts/prose.py
	snakemake --lint --configfile config/mini.yaml

# The pages of docs/ as a site, in site/.
docs: setup
	NO_MKDOCS_2_WARNING=1 mkdocs build --quiet --strict

# Speed of this machine, with nothing else running: minutes (python -m benchmarks.bench --help).
bench: setup
	python -m benchmarks.bench
	python -m benchmarks.bench --table

# After an edit of pyproject.toml: the same pins for pip, uv and conda.
lock:
	uv pip compile pyproject.toml --extra dev --universal --python-version 3.11 --upgrade \
	  --no-emit-index-url --no-emit-find-links --no-header --no-annotate -o requirements.lock
	$(PYTHON) workflow/scripts/conda_environment.py

# Mend: only missing or damaged shards are written, and results stay up to date.
shards: setup
	ijepa-bench data fetch $(DATASET) --raw data/raw/$(DATASET)
	ijepa-bench data build $(DATASET) --raw data/raw/$(DATASET) --out data/shards/$(DATASET)

clean:
	rm -rf .venv .snakemake work logs
