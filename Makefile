# make demo: from nothing to a clip. make test: every check. Both in one virtual environment.
PYTHON ?= python3
VENV ?= .venv
# Installed first where there is no NVIDIA GPU, so that the CPU build satisfies the project's range and nothing of
# CUDA comes. TORCH_INDEX is the address of an index that has that build, when pip's own has not.
TORCH ?= torch==2.13.0
TORCH_INDEX ?=
PYTEST_FLAGS ?= -n 2 --dist loadfile

BIN := $(VENV)/bin
DEMO_PROMPT ?= A woman with long red hair and round glasses, smiling, says "Hello! I am made of numbers."

.PHONY: demo test clean
.DELETE_ON_ERROR:

demo: $(VENV)/.installed
	@start=$$(date +%s) && \
	clip=$$($(BIN)/uniavgen generate --prompt '$(DEMO_PROMPT)' --seed 7) && \
	echo "$$clip made in $$(( $$(date +%s) - start )) s"

test: $(VENV)/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/python -m pytest $(PYTEST_FLAGS) -m 'not slow and not network'

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	{ echo "error: Python 3.11 or newer is needed; make PYTHON=python3.12 $(MAKECMDGOALS)" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)

$(VENV)/.torch: | $(BIN)/python
	@if nvidia-smi -L >/dev/null 2>&1; then echo "NVIDIA GPU found: torch comes with CUDA"; \
	else $(BIN)/python -m pip install -q '$(TORCH)' $(if $(TORCH_INDEX),--index-url '$(TORCH_INDEX)'); fi
	@touch $@

$(VENV)/.installed: pyproject.toml $(VENV)/.torch
	$(BIN)/python -m pip install -q -e .
	@touch $@

$(VENV)/.installed-dev: pyproject.toml $(VENV)/.torch
	$(BIN)/python -m pip install -q -e '.[dev]'
	@touch $@ $(VENV)/.installed

clean:
	rm -rf $(VENV) build dist .mypy_cache .pytest_cache .ruff_cache
