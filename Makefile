# make quickstart   a virtual environment, a corpus, and three minutes of training
# make test         everything that has to hold: lint, types, tests
#
# MLX=cpu (the default off macOS), cuda12 or cuda13 chooses MLX's back end on Linux.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
ifneq ($(shell uname -s),Darwin)
MLX ?= cpu
endif
comma := ,
SOURCES := pyproject.toml setup.py $(wildcard nanoegg_mlx/engines/native/*.*)

.PHONY: quickstart install test lint clean

quickstart: install
	$(BIN)/nanoegg prepare --source python-stdlib
	$(BIN)/nanoegg train --config configs/quickstart.toml
	@echo "Next: 'nanoegg eval checkpoints/quickstart --baselines' measures the checkpoint exactly, and"
	@echo "configs/nano-egg.toml is the full-size model ('. $(BIN)/activate' first)."

install: $(VENV)/installed

$(VENV)/installed: $(SOURCES)
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --editable '.$(if $(MLX),[$(MLX)])'
	@touch $@

# What the tests and the checks need comes on top of what a user installs.
$(VENV)/installed-test: $(VENV)/installed
	$(BIN)/python -m pip install --quiet --editable '.[$(if $(MLX),$(MLX)$(comma))test]'
	@touch $@

test: lint
	$(BIN)/python -m pytest

lint: $(VENV)/installed-test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

clean:
	rm -rf $(VENV) build *.egg-info
