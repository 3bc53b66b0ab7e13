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
.PHONY: help demo quick test check coverage docs crash fuzz kernels kernels-ci kernels-oldest interop bench bench-export gpu-test first-gpu first-gpu-wheels first-gpu-rehearse clean

help:
	@echo "make demo      the main job on the pocket world, from photos to a page: demo/index.html"
	@echo "make quick     lint, format and the quick tests: under a minute, for every edit"
	@echo "make test      every test that needs no GPU"
	@echo "make coverage  the tests again, with the lines and branches that they run"
	@echo "make docs      build/site: the documentation and a reference from docstrings; fails on a link to nowhere"
	@echo "make crash     kill every command that writes, before each of its file operations; print what was left or lost"
	@echo "make fuzz      damage every kind of file that is read, 10,000 times; print what did not end in a sentence"
	@echo "make check     lint, format, types, and who may import whom"
	@echo "make kernels   compile the GPU kernels ahead of time into build/kernels/cubins (no GPU needed)"
	@echo "make kernels-ci      the same for sm_80 and sm_90, and fail on a kernel that spills or outgrew its registers"
	@echo "make kernels-oldest  the kernels with the oldest Triton that is supported: interpreter and compiler"
	@echo "make interop   our engines opened by Hugging Face's optimum and the other way round, in a second environment"
	@echo "make gpu-test  test the kernels on this machine's GPU (GPU_PYTHON=python3 uses your own CUDA torch)"
	@echo "make bench     time engines, loading, training and the kernels' references on this CPU"
	@echo "make bench-export  export Stable Diffusion 1.5's configuration: time, memory, sizes, parity"
	@echo "make first-gpu CALL=A OUT=FOLDER   then B, C and D: a GPU's first hour, in calls of at most nine minutes"
	@echo "make first-gpu-rehearse   the same steps on this CPU, on the pocket model and small shapes"
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

# The tests build with TensorRT for RTX (250 MB), which needs no GPU for that; the demo needs neither.
$(VENV)/rtx: $(STAMP)
	@$(PY) -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[rtx]'
	@touch $@

# The kernels' tests run under Triton's interpreter (1 GB), which needs no GPU.
$(VENV)/kernels: $(STAMP)
	@$(PY) -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[kernels]'
	@touch $@

# Ray, pyarrow, TensorBoard, OpenVINO: each for a few tests (0.7 GB).
$(VENV)/test: $(STAMP)
	@$(PY) -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[test]'
	@touch $@

# Two workers of one thread each: more threads would share the same cores.
TESTS := env OMP_NUM_THREADS=1 $(PY) -m pytest -n 2 --dist worksteal -q

# The report lists what takes more than a second: such a test needs the mark `slow`.
quick: $(STAMP)
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(TESTS) -r fE -m "not slow" --durations 10 --durations-min 1

test: $(VENV)/rtx $(VENV)/kernels $(VENV)/test
	$(TESTS)

# Slower than the tests alone, and no part of .ci/run.
coverage: $(VENV)/rtx $(VENV)/kernels $(VENV)/test
	$(TESTS) --cov --cov-report=term:skip-covered

$(VENV)/docs: $(STAMP)
	@$(PY) -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[docs]'
	@touch $@

docs: $(VENV)/docs
	$(PY) -m mkdocs build --strict --quiet
	@echo "open build/site/index.html"

# 1,000 kills of synth and 25 of each other command: half an hour on one core.
crash: $(STAMP)
	env OMP_NUM_THREADS=1 $(PY) -m tests.crash

# 10,000 damaged inputs: half an hour on one core. FUZZ='--only plan --seed 7 --cases 1' repeats one.
fuzz: $(STAMP)
	env OMP_NUM_THREADS=1 PYTHONPATH=.:kernels:export $(PY) -m tests.fuzz $(FUZZ)

check: $(STAMP)
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(PY) -m mypy
	$(PY) -m pytest -q tests/test_imports.py

CMAKE := PATH="$(CURDIR)/$(VENV)/bin:$$PATH" cmake
KERNELS_BY := -DDIVE_KERNELS_AOT=ON -DPython_EXECUTABLE=$(CURDIR)/$(PY)

kernels: $(VENV)/kernels
	$(CMAKE) -S . -B build/kernels $(KERNELS_BY)
	$(CMAKE) --build build/kernels
	@echo "To use them: export DIVE_KERNELS_CUBINS=$(CURDIR)/build/kernels/cubins"

kernels-ci: $(VENV)/kernels
	$(CMAKE) -S . -B build/kernels-ci $(KERNELS_BY) '-DDIVE_KERNELS_ARCHS=80;90'
	$(CMAKE) --build build/kernels-ci
	PYTHONPATH=kernels $(PY) -m dive_kernels.aot --check-budgets build/kernels-ci/cubins

# The lower end of the range in pyproject.toml, first on the path; the environment keeps its version. Its interpreter needs
# an older numpy: with 2.4 it fails at loops whose bounds are known at run time only.
OLDEST_TRITON := 3.6.0
OLDEST := build/triton-$(OLDEST_TRITON)

$(OLDEST)/installed: $(VENV)/kernels
	@$(PY) -m pip install --quiet --disable-pip-version-check --no-deps --upgrade --target $(OLDEST) \
	  triton==$(OLDEST_TRITON) numpy==2.3.5
	@touch $@

kernels-oldest: $(OLDEST)/installed
	PYTHONPATH=$(OLDEST) $(PY) -m pytest tests/kernels/test_interpreter.py
	PYTHONPATH=$(OLDEST):kernels $(PY) -m dive_kernels.aot build/kernels-oldest --arch 90 \
	  --only 'solver_step-*' '*attention-headdim40-*' 'groupnorm_silu-*-channels640-*' 'geglu-inner320-*'

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
	PYTHONPATH=.:kernels:export $(PY) -m benchmarks.kernels
	PYTHONPATH=.:kernels:export $(PY) -m benchmarks.engines
	PYTHONPATH=.:kernels:export $(PY) -m benchmarks.loader
	PYTHONPATH=.:kernels:export $(PY) -m benchmarks.personalize
	PYTHONPATH=.:kernels:export $(PY) -m benchmarks.bulk
	PYTHONPATH=.:kernels:export $(PY) -m benchmarks.people
	PYTHONPATH=.:kernels:export $(PY) -m benchmarks.reid
	$(VENV)/bin/dive-fast bench --model pocket --baselines all --presets exact,fast,7 --out benchmarks/results/bench-pocket-cpu

# The configuration of Stable Diffusion 1.5 with random weights: five minutes and 12 GB of memory.
bench-export: $(STAMP)
	PYTHONPATH=.:kernels:export $(PY) -m benchmarks.export

# Four calls (benchmarks/first_gpu.py). Where wheels lie in build/gpu-wheels, they complete a Python that lacks them.
CALL ?= A
OUT ?= build/first-gpu
GPU_WHEELS := build/gpu-wheels
GPU_SITE := build/gpu-site

first-gpu: $(GPU_READY)
	@if ls $(GPU_WHEELS)/*.whl >/dev/null 2>&1; then \
	  $(GPU_PYTHON) -m pip install --quiet --disable-pip-version-check --no-index --no-deps --no-compile --upgrade \
	    --target $(GPU_SITE) $(GPU_WHEELS)/*.whl; fi
	env PYTHONPATH=.:kernels:export:$(GPU_SITE) $(GPU_PYTHON) -m benchmarks.first_gpu $(CALL) --out $(OUT)

# What a machine with CUDA torch and transformers, but without a network, lacks; none of it is compiled.
first-gpu-wheels: $(STAMP)
	$(PY) -m pip download --quiet --disable-pip-version-check --no-deps --only-binary=:all: -c constraints.txt \
	  --dest $(GPU_WHEELS) diffusers 'importlib_metadata<9'

first-gpu-rehearse: $(STAMP)
	env OMP_NUM_THREADS=1 PYTHONPATH=.:kernels:export $(PY) -m benchmarks.first_gpu A B C D --device cpu \
	  --out build/first-gpu-rehearsal

clean:
	rm -rf $(VENV) $(INTEROP) build dist .pytest_cache .mypy_cache .ruff_cache
