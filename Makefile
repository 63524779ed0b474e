# make demo | test | test-nightly | test-gpu | test-gpu-nightly | check | format | docs | clean: each sets up what it
# needs in .venv, once.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

# Tests compile with the newest NVRTC and with the oldest that gemmir supports.
NVRTC_NEWEST := 13.5.37
NVRTC_OLDEST := 13.0.88
export GEMMIR_NVRTC_13_0 := $(CURDIR)/$(VENV)/nvrtc-$(NVRTC_OLDEST)
# compute-sanitizer, which only `make test-gpu` needs.
SANITIZER := 13.5.25
# cuda.h, for tests that compile C. A CUDA build of torch brings its own.
CUDA_HEADERS := 13.5.37

PIP := $(BIN)/python -m pip --disable-pip-version-check --quiet

.PHONY: demo test test-nightly test-gpu test-gpu-nightly check format docs setup clean

demo: setup
	$(BIN)/python examples/demo.py

# GPU tests take turns, others do not.
test: setup
	$(BIN)/python -m pytest -n auto --maxprocesses 8 --dist worksteal

# Too long for each change: a million mutated IR texts; 500 compilations and 250 commands that are interrupted.
test-nightly: setup
	GEMMIR_FUZZ=1000000 $(BIN)/python -m pytest tests/fuzz
	GEMMIR_INTERRUPTS=500 $(BIN)/python -m pytest tests/test_interrupts.py

test-gpu: setup
	$(PIP) install --no-deps nvidia-cuda-sanitizer-api==$(SANITIZER)
	$(BIN)/python -m pytest -m gpu

# A million launches, and an hour of streams and graphs under chaos.
test-gpu-nightly: setup
	GEMMIR_SOAK=1000000 GEMMIR_SOAK_SECONDS=3600 $(BIN)/python -m pytest -m gpu tests/gpu/test_soak.py

check: setup
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/basedpyright

docs: setup
	$(BIN)/python -m gemmir.reference_pages docs/reference
	$(BIN)/python -m mkdocs build

format: setup
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

setup: $(STAMP)

$(BIN)/python:
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "gemmir needs Python 3.11; set PYTHON=")'
	$(PYTHON) -m venv $(VENV)

# The newest NVRTC comes by --no-deps: a CUDA build of torch pins its own, and any 13.x serves it.
$(STAMP): requirements-dev.txt pyproject.toml Makefile | $(BIN)/python
	$(PIP) install -r requirements-dev.txt
	$(PIP) install --no-deps nvidia-cuda-nvrtc==$(NVRTC_NEWEST)
	$(PIP) show nvidia-cuda-runtime >/dev/null 2>&1 || $(PIP) install --no-deps nvidia-cuda-runtime==$(CUDA_HEADERS)
	$(PIP) install --no-deps --no-build-isolation -e .
	rm -rf $(GEMMIR_NVRTC_13_0)
	$(PIP) install --no-deps --target $(GEMMIR_NVRTC_13_0) nvidia-cuda-nvrtc==$(NVRTC_OLDEST)
	touch $@

clean:
	rm -rf $(VENV) build dist site *.egg-info .pytest_cache .ruff_cache .hypothesis
