# `make demo` and `make test` are all that a new user needs; each sets up .venv on first use.
PYTHON ?= python3
TORCH ?= torch==2.13.0
BIN := .venv/bin
CONFIG := configs/quick/mask_rcnn_R_18_FPN_shapes.yaml
DEMO := output/demo
# Kernels for GPUs take a minute to compile: only where there is one, or where they are asked for.
ARCHS := $(if $(shell nvidia-smi -L 2>/dev/null),,MASKRCNN_CUDA_ARCHS=$$MASKRCNN_CUDA_ARCHS)
NATIVE := $(shell find projects_maskrcnn/csrc tests/csrc -type f -not -name '*.py' -not -path '*__pycache__*')

# The tests run side by side, so each keeps to one thread.
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto

.PHONY: demo test test-slow lint format clean

demo: $(DEMO)/model_final.pth
	$(BIN)/python -m projects_maskrcnn.show $(DEMO)

# An interrupted training goes on from its last checkpoint.
$(DEMO)/model_final.pth: .venv/installed
	$(BIN)/python train_net.py --config-file $(CONFIG) --resume OUTPUT_DIR $(DEMO)

test: .venv/installed
	$(PYTEST) -m "not slow"

test-slow: .venv/installed
	$(PYTEST) -m slow

lint: .venv/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/clang-format --dry-run --Werror $(NATIVE)

format: .venv/installed
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(BIN)/clang-format -i $(NATIVE)

clean:
	rm -rf .venv build output datasets *.egg-info projects_maskrcnn/ops/*.so

.venv/installed: setup.py pyproject.toml $(filter projects_maskrcnn/%,$(NATIVE))
	$(PYTHON) -m venv .venv
	$(BIN)/pip install -q $(TORCH)
	$(ARCHS) $(BIN)/pip install -q -e '.[test]'
	touch $@
