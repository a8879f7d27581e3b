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
SOURCES := pyproject.toml setup.py $(wildcard nanoegg_mlx/engines/native/*.*)
empty :=
comma := ,
commas = $(subst $(empty) $(empty),$(comma),$(strip $(1)))
# $(call install,EXTRAS): the virtual environment with the package in it, this checkout's files being the package.
define install
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --editable '.$(if $(strip $(1)),[$(call commas,$(1))])'
	@touch $@
endef

.PHONY: quickstart install test lint clean

quickstart: install
	$(BIN)/nanoegg prepare --source python-stdlib
	$(BIN)/nanoegg train --config configs/quickstart.toml
	@echo "Next: 'nanoegg eval checkpoints/quickstart --baselines' measures the checkpoint exactly, and"
	@echo "configs/nano-egg.toml is the full-size model ('. $(BIN)/activate' first)."

install: $(VENV)/installed

$(VENV)/installed: $(SOURCES)
	$(call install,$(MLX))

# What the tests and checks need, and what a user needs with it.
$(VENV)/installed-test: $(SOURCES)
	$(call install,$(MLX) test)
	@touch $(VENV)/installed

test: lint
	$(BIN)/python -m pytest

lint: $(VENV)/installed-test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

clean:
	rm -rf $(VENV) build *.egg-info
