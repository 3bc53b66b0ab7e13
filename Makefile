# Needs Python >= 3.10 and make; everything else goes into .venv. `make PYTHON=python3.12 ...` chooses the Python.
PYTHON ?= python3
EXTRAS ?= torch,train,export,cpu,reid,report,dev
VENV := .venv
PY := $(VENV)/bin/python
STAMP := $(VENV)/installed

# GPU targets: your own Python with a CUDA build of torch, or else the .venv.
ifdef GPU_PYTHON
GPU_READY :=
else
GPU_PYTHON := $(PY)
GPU_READY := $(STAMP)
endif
GPU_RUN := env PYTHONPATH=.:kernels:export $(GPU_PYTHON)

.DEFAULT_GOAL := help
.PHONY: help demo test check kernels interop bench bench-export gpu-test gpu-bench clean

help:
	@echo "make demo      the main job on the pocket world, from photos to a page: demo/index.html"
	@echo "make test      every test that needs no GPU"
	@echo "make check     lint, format, types, and who may import whom"
	@echo "make kernels   compile the Triton kernels ahead of time into build/kernels/cubins (no GPU needed)"
	@echo "make interop   our engines opened by Hugging Face's optimum and the other way round, in an environment of its own"
	@echo "make gpu-test  test the kernels on this machine's GPU (GPU_PYTHON=python3 uses your own CUDA torch)"
	@echo "make bench     time engines, loading, training and the kernels' references on this CPU"
	@echo "make bench-export  export Stable Diffusion 1.5's configuration: time, memory, sizes, parity"
	@echo "make gpu-bench time the kernels, and the UNet at Stable Diffusion 1.5's size, on this machine's GPU"
	@echo "make clean     remove .venv, build and caches; demo/ and runs/ stay"

$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || { \
	  echo "dive-fast needs Python >= 3.10, '$(PYTHON)' is $$($(PYTHON) --version 2>&1); try make PYTHON=python3.11" >&2; exit 1; }
	@$(PYTHON) -m venv $(VENV) || { \
	  echo "'$(PYTHON)' cannot make a virtual environment; on Debian or Ubuntu install the package python3-venv" >&2; exit 1; }
	@echo "Installing into $(VENV) (1.6 GB, a minute or two)"
	@$(PY) -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[$(EXTRAS)]'
	@touch $@

demo: $(STAMP)
	$(VENV)/bin/dive-fast demo --out demo

# Tests really build with TensorRT for RTX, which needs no GPU for it (250 MB); the demo does without.
$(VENV)/rtx: $(STAMP)
	@$(PY) -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[rtx]'
	@touch $@

test: $(VENV)/rtx
	$(PY) -m pytest

check: $(STAMP)
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(PY) -m mypy
	$(PY) -m pytest -q tests/test_imports.py

kernels: $(STAMP)
	@$(PY) -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[kernels]'
	PATH="$(CURDIR)/$(VENV)/bin:$$PATH" cmake -S . -B build/kernels -DDIVE_KERNELS_AOT=ON -DPython_EXECUTABLE=$(CURDIR)/$(PY)
	PATH="$(CURDIR)/$(VENV)/bin:$$PATH" cmake --build build/kernels

# Optimum's pins clash with ours, hence a second environment.
INTEROP := .venv-interop
INTEROP_RUN := env HF_HUB_OFFLINE=1 $(INTEROP)/bin/python -W ignore

$(INTEROP)/installed: tests/interop/requirements.txt
	@$(PYTHON) -m venv $(INTEROP)
	@echo '*' > $(INTEROP)/.gitignore
	@echo "Installing into $(INTEROP) (1.3 GB, a minute or two)"
	@$(INTEROP)/bin/python -m pip install --quiet --disable-pip-version-check -r $<
	@touch $@

interop: $(STAMP) $(INTEROP)/installed
	PYTHONPATH=.:kernels:export $(PY) tests/interop/check.py make build/interop
	$(INTEROP_RUN) tests/interop/check.py optimum build/interop
	PYTHONPATH=.:kernels:export $(PY) tests/interop/check.py open build/interop

gpu-test: $(GPU_READY)
	@$(GPU_RUN) -m dive_fast.cli doctor --need triton-kernels
	$(GPU_RUN) -m pytest -m gpu

bench: $(STAMP)
	PYTHONPATH=.:kernels:export $(PY) -m benchmarks.solver_step
	PYTHONPATH=.:kernels:export $(PY) -m benchmarks.engines
	PYTHONPATH=.:kernels:export $(PY) -m benchmarks.loader
	PYTHONPATH=.:kernels:export $(PY) -m benchmarks.personalize

# The configuration of Stable Diffusion 1.5 with random weights: five minutes and 12 GB of memory.
bench-export: $(STAMP)
	PYTHONPATH=.:kernels:export $(PY) -m benchmarks.export

gpu-bench: $(GPU_READY)
	@$(GPU_RUN) -m dive_fast.cli doctor --need triton-kernels
	$(GPU_RUN) -m benchmarks.solver_step --device cuda
	$(GPU_RUN) -m benchmarks.unet_gpu --out benchmarks/results/unet-gpu.json

clean:
	rm -rf $(VENV) $(INTEROP) build dist .pytest_cache .mypy_cache .ruff_cache
