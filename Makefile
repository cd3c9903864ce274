# make demo   train and certify on the embedded digits
# make test   the fast tests;  make test-slow  the rest;  make test-slurm  on a Slurm of its own
# make lint   style, types and who imports whom;  make proofs  the theorems, checked by Coq
# make docs   the documentation site, in build/site/index.html
# make package   the wheel and the source distribution in dist/, built and checked
# make verified-checker   the program of robustcert-check --verified
# make board  networks of other libraries, trained and certified, and the board (ROBUSTCERT_DATA: with which data)
PYTHON ?= python3
BIN := .venv/bin
READY := .venv/.ready

.PHONY: demo test test-slow test-slurm lint docs package proofs verified-checker board clean

demo: $(READY)
	OMP_NUM_THREADS=1 $(BIN)/python train.py trainer.max_epochs=60 attack.seconds=10

test: $(READY)
	OMP_NUM_THREADS=1 $(BIN)/pytest -q -n 2

test-slow: $(READY)
	OMP_NUM_THREADS=1 $(BIN)/pytest -q -n 2 -m slow

# Installs Debian's slurm-wlm and munge where it may; fails with the command to run where not.
test-slurm: $(READY)
	OMP_NUM_THREADS=1 $(BIN)/pytest -q -m slurm tests/slurm

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/pytest -q tests/test_imports.py

# Warnings are errors, and so is a link that leads nowhere; no page needs a network.
docs: $(READY)
	PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/python -m sphinx --fresh-env --fail-on-warning --keep-going \
		--quiet -c docs/site -d build/doctrees docs build/site

# The wheel is built from the source distribution, so that this holds all that it needs.
package: $(READY)
	rm -rf dist
	$(BIN)/python -m build --no-isolation
	$(BIN)/twine check --strict dist/*

# Installs Debian's coq and its libraries where it may; fails with the command to run where not.
proofs:
	PYTHON=$(PYTHON) proofs/build.sh

# The same, with OCaml and zarith.
verified-checker:
	proofs/verified.sh

board: $(READY)
	OMP_NUM_THREADS=1 $(BIN)/python -m benchmarks.studies.peer_certificates --out docs/peers
	OMP_NUM_THREADS=1 $(BIN)/python -m robustcert.board docs/pretrained docs/peers --out docs/board.md

$(READY): pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[dev]'
	touch $@

clean:
	rm -rf .venv .pytest_cache .mypy_cache .ruff_cache dist build
