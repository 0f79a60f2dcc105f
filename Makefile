# make reproduce | make repro | make pull | make test | make test-slurm | make setup | make lint | make lock. Everything runs in .venv.

CONFIG ?= config/mini.yaml
DATASET ?= cifar10
PYTHON := .venv/bin/python
export PATH := $(CURDIR)/.venv/bin:$(PATH)
SHELL := /bin/bash

.PHONY: reproduce repro pull setup test test-slurm lint lock shards clean

reproduce: setup
	snakemake --profile workflow/profiles/local --configfile $(CONFIG)

# The same, versioned: make repro, dvc push, git commit. A clone's way to the results: make pull.
repro: setup
	@python -m workflow.scripts.versioned unlock
	dvc repro

pull: setup
	@python -m workflow.scripts.versioned unlock
	dvc pull --with-deps tables-$(basename $(notdir $(CONFIG)))
	python -m workflow.scripts.versioned settle

setup: .venv/complete

# The stamp is written last: an interrupted installation is finished by the next make.
# uv doesn't compile by itself, nor may Python in many containers: each job's imports took 22 s instead of 7.
.venv/complete: requirements.lock
	@here=$$(python3 -m site --user-base)/bin/uv; \
	if uv=$$(command -v uv || command -v $$here) || { python3 -m pip install --quiet --user uv 2>/dev/null && uv=$$here; }; then \
	  [ -x $(PYTHON) ] || $$uv venv --python 3.11 .venv; \
	  $$uv pip install --compile-bytecode --python $(PYTHON) --requirement requirements.lock; \
	else \
	  [ -x $(PYTHON) ] || $$(command -v python3.11 || command -v python3) -m venv .venv; \
	  $(PYTHON) -m ensurepip >/dev/null; $(PYTHON) -m pip install --requirement requirements.lock; \
	fi
	@touch $@

test: setup
	python -m pytest

# A real Slurm on this machine, from Debian's packages (root installs them; else it says that it skips).
test-slurm: setup
	python -m pytest -m slurm tests/slurm

lint: setup
	ruff format --check .
	ruff check .
	mypy
	lint-imports
	codespell
	snakefmt --check Snakefile workflow
	snakemake --lint --configfile config/ci.yaml

# After an edit of pyproject.toml: the same pins for pip, uv and conda.
lock:
	uv pip compile pyproject.toml --extra dev --universal --python-version 3.11 --upgrade \
	  --no-emit-index-url --no-emit-find-links --no-header --no-annotate -o requirements.lock
	$(PYTHON) workflow/scripts/conda_environment.py

# Mend: only missing or damaged shards are written, and results stay up to date.
shards: setup
	python -m ijepa.data.shards fetch $(DATASET) --raw data/raw/$(DATASET)
	python -m ijepa.data.shards build $(DATASET) --raw data/raw/$(DATASET) --out data/shards/$(DATASET)

clean:
	rm -rf .venv .snakemake work logs
