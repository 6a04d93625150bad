# Every target sets up what it needs, so each of them works on a bare machine with Python >= 3.11.
# Options for the command behind a target go into ARGS:  make train-mnist ARGS="--trainer.max_epochs 3"
# and options for pip, such as an index of CPU builds of PyTorch, into PIP_ARGS.

PYTHON ?= python3
JOBS ?= 2
ARGS ?=
PIP_ARGS ?=
BIN := .venv/bin
INSTALLED := .venv/.installed

.DEFAULT_GOAL := help
.PHONY: help install install-dev train-mnist train-cifar10 eval sample interpolate viz-recon viz-traverse viz-scatter \
	compare-dae demo explore experiment notebook verify bench family test lint format docs docs-figures check-release \
	clean clean-all

help: ## show this help
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## / { printf "  make %-14s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

install: $(INSTALLED) ## make .venv and install vlae into it (PYTHON=python3.12 to choose another)

install-dev: .venv/.installed-dev ## the same with the tools for tests, lint and types

# -- use ----------------------------------------------------------------------

train-mnist: install ## train a VLAE on MNIST
	$(BIN)/vlae train --config mnist $(ARGS)

train-cifar10: install ## train a VLAE on CIFAR-10
	$(BIN)/vlae train --config cifar10 $(ARGS)

eval: install ## evaluate the newest run (ARGS="--run outputs/NAME" for another)
	$(BIN)/vlae eval $(ARGS)

sample: install ## draw samples from the newest run's prior
	$(BIN)/vlae sample prior $(ARGS)

interpolate: install ## draw paths between the codes of held-out images (ARGS="--path both --pairs 3")
	$(BIN)/vlae sample interpolate $(ARGS)

viz-recon: install ## draw the newest run's reconstructions
	$(BIN)/vlae viz recon-grid $(ARGS)

viz-traverse: install ## draw what moves with single dimensions of z (ARGS="--dims 0 1 2": a picture for each)
	$(BIN)/vlae viz traverse $(ARGS)

viz-scatter: install ## draw posterior means in a plane by label (ARGS="--projection pca")
	$(BIN)/vlae viz latent-scatter $(ARGS)

explore: .venv/.installed-explore ## the explorer in a browser (ARGS="mnist-codec --port 0")
	$(BIN)/vlae explore $(ARGS)

compare-dae: install ## VAE, VLAE and denoising autoencoder side by side (ARGS="--data.name mnist" for another set)
	$(BIN)/vlae compare dae $(ARGS)

demo: install ## train, evaluate and draw on the digits that ship with scikit-learn; no download of data
	bash scripts/demo.sh

experiment: install ## a study: a table and plots (ARGS="receptive-field --budget minutes"; none: list them)
	$(BIN)/vlae experiment $(ARGS)

notebook: .venv/.installed-notebook ## open the notebooks in JupyterLab
	$(BIN)/jupyter lab $(ARGS) notebooks

verify: install ## check this installation's numbers against exact ones
	$(BIN)/vlae verify $(ARGS)

bench: install ## all ratios: training, sampling, likelihood, codec
	$(BIN)/python benchmarks/ratios.py $(ARGS)

family: install ## every model and likelihood after a small budget: the table of docs/results.md (an hour)
	$(BIN)/python benchmarks/family.py $(ARGS)

# -- develop ----------------------------------------------------------------------

# One thread per worker: more would only compete for the same cores.
test: install-dev ## run the tests (JOBS=8 for more workers)
	OMP_NUM_THREADS=1 $(BIN)/pytest -n $(JOBS) $(ARGS)

lint: install-dev ## check style and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: install-dev ## rewrite the sources in the house style
	$(BIN)/ruff check --fix-only .
	$(BIN)/ruff format .

docs: .venv/.installed-docs ## build the documentation into site/ (open site/index.html; no server needed)
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict $(ARGS)
	@echo "site/index.html"

docs-figures: install ## draw the pictures of the documentation again, from the pretrained models and a few trainings
	bash scripts/docs_figures.sh

check-release: ## build sdist and wheel, and try them in an empty environment
	bash scripts/check_release.sh $(ARGS)

# -- clean ----------------------------------------------------------------------

clean: ## remove caches and builds
	rm -rf build dist site .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . \( -name .venv -o -name .git \) -prune -o \( -name __pycache__ -o -name '*.egg-info' \) -prune \
		-exec rm -rf {} +

clean-all: clean ## also remove .venv, outputs, results and downloaded data (never $VLAE_DATA)
	@if [ -x $(BIN)/python ]; then $(BIN)/python -c "$$REMOVE_DOWNLOADS"; \
	else echo "no .venv, so downloads in the user's cache directory, if any, were left"; fi
	rm -rf .venv outputs results

define REMOVE_DOWNLOADS
import os, pathlib, shutil, pooch
cache = pathlib.Path(pooch.os_cache("vlae")).resolve()
kept = pathlib.Path(os.environ.get("VLAE_DATA") or os.devnull).expanduser().resolve()
if cache == kept or kept in cache.parents or cache in kept.parents:
    print(f"kept {cache}: it shares files with VLAE_DATA")
else:
    print(f"rm -rf {cache}")
    shutil.rmtree(cache, ignore_errors=True)
endef
export REMOVE_DOWNLOADS

# -- set-up ----------------------------------------------------------------------

# The stamps are touched last: a set-up that was interrupted is done again.
.venv/.created:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || \
		{ echo "vlae needs Python 3.11 or newer, and $(PYTHON) is not: give one with PYTHON=/path/to/python" >&2; \
		exit 1; }
	$(PYTHON) -m venv .venv
	@touch $@

$(INSTALLED): pyproject.toml | .venv/.created
	@echo "installing vlae and what it needs into .venv (a minute or two)"
	$(BIN)/pip install -q $(PIP_ARGS) -e .
	@touch $@

# Those of the extras of pyproject.toml; dev has docs and explore in it.
.venv/.installed-%: pyproject.toml | .venv/.created
	@echo "installing vlae, what it needs and the extra '$*' into .venv (a minute or two)"
	$(BIN)/pip install -q $(PIP_ARGS) -e '.[$*]'
	@touch $(INSTALLED) $(if $(filter dev,$*),.venv/.installed-docs .venv/.installed-explore) $@
