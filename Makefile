# make quickstart   a virtual environment, a corpus, and three minutes of training
# make test         everything that has to hold: lint, types, tests
# make notebook     EGGROLL's claims as experiments, in the browser (marimo, of the extra `notebook`)
#
# MLX=cpu (the default off macOS), cuda12 or cuda13 chooses MLX's back end on Linux.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
ifneq ($(shell uname -s),Darwin)
MLX ?= cpu
endif
comma := ,
EXTRAS = $(if $(MLX),$(MLX)$(comma))test

.PHONY: quickstart install test lint notebook clean

quickstart: install
	$(BIN)/nanoegg prepare --source python-stdlib
	$(BIN)/nanoegg train --config configs/quickstart.toml
	@echo "Next: 'nanoegg eval checkpoints/quickstart --baselines' measures the checkpoint exactly, and"
	@echo "configs/nano-egg.toml is the full-size model ('. $(BIN)/activate' first)."

install: $(VENV)/installed

$(VENV)/installed: pyproject.toml Makefile
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --editable '.[$(EXTRAS)]'
	@touch $@

test: install lint
	$(BIN)/python -m pytest

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

notebook: install
	$(BIN)/marimo edit notebooks/eggroll_claims.py

clean:
	rm -rf $(VENV) build *.egg-info
