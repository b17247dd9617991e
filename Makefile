# The commands of the project. `make demo` and `make test` are all a newcomer needs.
PYTHON ?= python3
PY := .venv/bin/python
TORCH := $(shell grep '^torch==' constraints.txt)
TORCH_CPU_INDEX := https://download.pytorch.org/whl/cpu

.PHONY: demo test test-live test-rest test-gpu setup check lint types format bench check-tensorrt clean
.DEFAULT_GOAL := demo

demo: setup ## skeletons on moving people, within minutes
	@mkdir -p out
	$(PY) run_stream.py demo --save out/demo.mp4 --jsonl out/demo.jsonl
	@echo "overlay video: out/demo.mp4"
	@echo "poses:         out/demo.jsonl  (one message of schema pose/1 a line, see docs/schema.md)"

test: setup ## the whole test suite, in two halves side by side: one waits a lot, the other computes
	@$(MAKE) --no-print-directory -j 2 --output-sync=line test-live test-rest

LIVE_TESTS := tests/pipeline tests/test_run_stream.py tests/test_fuzz.py
TRAINING_TESTS := tests/training tests/test_train.py

test-live: setup
	$(PY) -m pytest $(LIVE_TESTS)

test-rest: setup
	$(PY) -m pytest tests $(addprefix --ignore ,$(LIVE_TESTS) $(TRAINING_TESTS))
	@# A process of its own: forking loader workers out of one that has run everything crashed once.
	$(PY) -m pytest $(TRAINING_TESTS)

test-gpu: setup ## what needs an NVIDIA GPU; without one it fails
	FAIL_WITHOUT_GPU=1 $(PY) -m pytest tests -m gpu

check: lint types test ## what CI runs

lint: setup
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .

types: setup
	.venv/bin/mypy

format: setup
	.venv/bin/ruff check --fix .
	.venv/bin/ruff format .

bench: setup ## the figures of docs/performance.md
	for bench in benchmarks/bench_*.py; do $(PY) -m benchmarks.$$(basename $$bench .py) || exit 1; done

check-tensorrt: .venv-tensorrt/.ready ## every network converts to TensorRT; needs no GPU, but 6 GB
	.venv-tensorrt/bin/python benchmarks/check_tensorrt/check.py

.venv-tensorrt/.ready: benchmarks/check_tensorrt/requirements.txt
	$(PYTHON) -m venv .venv-tensorrt
	.venv-tensorrt/bin/python -m pip install --quiet --requirement $<
	@touch $@

setup: .venv/.ready

.venv/.ready: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
	  || { echo "posestream needs Python 3.11 or newer; got $$($(PYTHON) --version). Try: make PYTHON=python3.12"; exit 2; }
	@$(PYTHON) -m venv .venv \
	  || { echo "cannot make a virtual environment; on Debian and Ubuntu: apt install python3-venv"; exit 2; }
	$(PY) -m pip install --quiet --upgrade pip
	@# Without an NVIDIA GPU PyTorch's CPU build will do (0.2 GB instead of 3 GB), where its index answers.
	@if command -v nvidia-smi >/dev/null; then \
	  echo "NVIDIA driver found: installing $(TORCH) with CUDA"; $(PY) -m pip install --quiet $(TORCH); \
	elif $(PY) -c 'import urllib.request as u; u.urlopen("$(TORCH_CPU_INDEX)/torch/", timeout=5)' 2>/dev/null; then \
	  echo "no NVIDIA driver: installing $(TORCH), CPU build"; \
	  $(PY) -m pip install --quiet $(TORCH) --index-url $(TORCH_CPU_INDEX); \
	else \
	  echo "no NVIDIA driver, and PyTorch's CPU index does not answer: installing $(TORCH) as it comes"; \
	  $(PY) -m pip install --quiet $(TORCH); \
	fi
	$(PY) -m pip install --quiet --constraint constraints.txt '.[cpu,train,dev]'
	@# The clone itself is what runs here: a copy of today's posestream would soon be an old one.
	$(PY) -m pip uninstall --quiet --yes posestream
	@# Where libGL is missing (servers, containers) only the headless OpenCV can be imported.
	@$(PY) -c 'import cv2' 2>/dev/null || { \
	  echo "cv2 cannot be imported (libGL is missing): installing opencv-python-headless instead; --show will not work"; \
	  $(PY) -m pip uninstall --quiet --yes opencv-python && \
	  $(PY) -m pip install --quiet "opencv-python-headless==$$(sed -n 's/^opencv-python==//p' constraints.txt)" && \
	  $(PY) -c 'import cv2'; }
	@rm -rf build *.egg-info
	@touch $@

clean:
	rm -rf .venv .venv-tensorrt out build .mypy_cache .ruff_cache .pytest_cache .hypothesis
