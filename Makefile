# One command each; `make help` lists them. Everything is installed into .venv on first use.
SHELL := /bin/bash
.DELETE_ON_ERROR:
PYTHON ?= python3
BIN := .venv/bin
export PATH := $(CURDIR)/$(BIN):$(PATH)
export MPLBACKEND ?= agg
# from the command line or FUSION_NB_DATA only: DATA is too common a name in people's environments
DATA = $(FUSION_NB_DATA)
override DATA_DIR := $(shell test -z "$(DATA)" || $(PYTHON) -c 'import os, sys; print(os.path.abspath(sys.argv[1]))' "$(DATA)")
export FUSION_NB_DATA := $(DATA_DIR)
OUT ?= runs

.PHONY: help install report test drift lab readme docs bench clean

help: ## this list
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14

install: .venv/.ready ## .venv with the exact versions of constraints.txt

.venv/.ready: constraints.txt settings.ini setup.py
	$(PYTHON) -c 'import sys; sys.exit(0 if sys.version_info >= (3, 11) else "fusion_nb needs Python 3.11 or newer; name one with: make PYTHON=python3.11 ...")'
	$(PYTHON) -m venv .venv
	PIP_CONSTRAINT=constraints.txt $(BIN)/pip install --quiet --disable-pip-version-check -e '.[dev]'
	touch $@

report: .venv/.ready ## run the study into runs/index.html; DATA=folder for the real cohort, else a synthetic twin
	fusion-nb run imaging_clinical --out $(OUT) $(if $(DATA_DIR),-f nbs/studies/params/breast_lesions.yaml -p data_dir "$(DATA_DIR)/breast_lesions_usg")

# one thread each: small networks are fastest so, and several processes do not fight over the cores
test: .venv/.ready drift ## drift check, every notebook, every test (add SLOW=1 for the slow ones)
	OMP_NUM_THREADS=1 nbdev_test --n_workers 2 --do_print
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q $(if $(SLOW),--slow) tests

drift: .venv/.ready ## the notebooks, the exported modules and the README say the same
	$(BIN)/python tests/check_drift.py
	$(BIN)/python tests/readme.py --check

lab: .venv/.ready ## JupyterLab on the notebooks
	jupyter lab --notebook-dir nbs

readme: .venv/.ready ## README.md from nbs/index.ipynb
	$(BIN)/python tests/readme.py

docs: .venv/.ready ## the website into _docs; needs Quarto
	@command -v quarto > /dev/null || { echo "make docs needs Quarto on the PATH: https://quarto.org/docs/get-started"; exit 2; }
	touch README.md  # or nbdev would write its own over it
	rm -rf _proc && nbdev_docs

bench: .venv/.ready ## speed against its peers, as ratios
	@for b in tests/benchmarks/bench_*.py; do $(BIN)/python $$b || exit 1; done

clean: ## what runs and docs left; keeps .venv
	rm -rf runs _proc _docs build dist *.egg-info
