# Everyday commands. Each sets up what it needs; `make` alone lists them.

PYTHON ?= $(firstword $(shell command -v python3.11 python3) python3.11)
VENV := .venv
# Relative, so that the folder's name may have spaces and quotes.
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

# The stages, and DVC and Prefect that call them, find each other on the path. Nothing reports home.
export PATH := $(CURDIR)/$(BIN):$(PATH)
export DO_NOT_TRACK := 1
export MLFLOW_DISABLE_TELEMETRY := true
export ORT_DISABLE_TELEMETRY := 1

.DEFAULT_GOAL := help
.PHONY: help setup demo demo-text demo-latent demo-control demo-unclip serve test test-all coverage test-gpu test-docker ablation bench-sampling bench-guidance bench-training lint format lock clean

help:  ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-15s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

# An environment has its own place written into it: one that was moved or copied with the project is made anew.
PLACE := '$(subst ','\'',$(CURDIR))/$(VENV)'
MOVED := $(shell test ! -f $(STAMP) || sed -n 's/^command = .* -m venv \(--clear \)*//p' $(VENV)/pyvenv.cfg | \
	grep -qxF -- $(PLACE) || { rm -f $(STAMP); echo --clear; })

setup: $(STAMP)  ## a virtual environment with everything in it, in the versions of requirements.lock

$(STAMP): requirements.lock requirements-uv.lock pyproject.toml
	@$(PYTHON) -c "import sys; sys.exit(sys.version_info[:2] != (3, 11))" 2>/dev/null || \
		{ echo "make: $(PYTHON) is not Python 3.11, which requirements.lock is for; say make PYTHON=/path/to/python3.11" >&2; exit 2; }
	@echo "setting up $(VENV) (about a minute, 6 GB)"
	@$(PYTHON) -m venv $(MOVED) $(VENV)
	@echo 'relocatable = true' >> $(VENV)/pyvenv.cfg  # commands that start whatever is in the folder's name
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements-uv.lock
	@$(BIN)/uv pip sync --quiet --compile-bytecode --python $(BIN)/python --require-hashes requirements.lock
	@$(BIN)/uv pip install --quiet --python $(BIN)/python --no-deps --no-build-isolation --editable .
	@$(BIN)/python -m flows.plots_page  # the page of `dvc plots show`, with its scripts in it
	@touch $@

demo: setup  ## raw images to a registered, deployed model, on the data that params.yaml names
	@python -m flows.retrain

demo-text: setup  ## the same on emoji and their names, in .demo-text/; ends with a picture of prompts
	@python -m flows.demo_text

demo-latent: setup  ## the same in the latents of an autoencoder, in .demo-latent/
	@python -m flows.demo_latent

demo-control: setup  ## the same with a control of such a model, in .demo-control/; ends with a picture of hints
	@python -m flows.demo_control

demo-unclip: setup  ## the same by way of CLIP's embeddings (DALL-E 2), in .demo-unclip/; ends with pictures like given ones
	@python -m flows.demo_unclip

serve: setup  ## MLflow's and Prefect's pages and the weekly schedule, on this machine; Ctrl-C stops all of it
	@python -m flows.serve

# Files go to two workers; the tests of a file share what they set up.
PYTEST := python -m pytest -n 2 --dist loadfile

test: setup  ## the fast tests
	@$(PYTEST) -m "not slow and not gpu"

test-all: setup  ## every test but the GPU's
	@$(PYTEST) -m "not gpu"

coverage: setup  ## the fast tests, and which lines they run: htmlcov/
	@$(PYTEST) -m "not slow and not gpu" --cov ddpm --cov flows --cov-report html --cov-report term:skip-covered

test-docker: setup  ## build the images; ask the serve image for an image, start, use and end the team's stack
	@python -m pytest -s -rs tests/test_containers.py tests/test_stack.py

test-gpu: setup  ## the tests that need a GPU
	@python -m pytest -m gpu

# As in `ddpm`: threads that spin while they wait starve beside any other busy process.
ablation: setup  ## the papers' claims and processes, measured on the digits in an hour and a half of one core: docs/
	@GOMP_SPINCOUNT=1000 python -m bench.ablation
	@GOMP_SPINCOUNT=1000 python -m bench.processes

bench-sampling: setup  ## images a second of our samplers and others', at equal steps and at equal FID
	@GOMP_SPINCOUNT=1000 python -m bench.sampling

bench-guidance: setup  ## what guidance costs a step, in torch, in onnxruntime and in the graph
	@GOMP_SPINCOUNT=1000 python -m bench.guidance

bench-training: setup  ## how fast this machine trains, beside diffusers and denoising_diffusion_pytorch: bench/results/
	@GOMP_SPINCOUNT=1000 python -m bench.training

lint: setup  ## style and types
	@ruff check . && ruff format --check . && mypy

format: setup  ## mend the style
	@ruff check --fix . && ruff format .

COMPILE := uv pip compile --quiet --python-version 3.11 --generate-hashes --no-annotate --no-header

lock: setup  ## resolve pyproject.toml anew into requirements.lock, and the images' locks with it
	@$(COMPILE) --upgrade pyproject.toml --extra train --extra emoji --extra control --extra bpe --extra pipeline --extra dev -o requirements.lock
	@$(COMPILE) --universal pyproject.toml --extra serve -c requirements.lock -o docker/serve.lock
	@for name in build servers; do $(COMPILE) docker/$$name.in -o docker/$$name.lock; done

clean:  ## remove what the stages made (not data/, not the MLflow store, not the environment)
	@rm -rf prepared extractor models reports deploy .ddpm/training .ddpm/features dvc_plots
