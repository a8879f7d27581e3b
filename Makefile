# make quickstart   a virtual environment, a corpus, and three minutes of training
# make test         lint, types and all tests
# make notebook     EGGROLL's claims as experiments, in the browser (marimo, from the extra `notebook`)
# make sanitize     the native engine without Python, under the address and undefined-behaviour sanitizers: recorded
#                   traces and kernels against their scalar twins, on every instruction set of this machine; half a
#                   minute
# make sanitize-c the exported C file under the same sanitizers, every width from 1 to 130; some minutes
# make test-arm     the same for 64-bit Arm in an emulator, on processors with and without i8mm and dotprod; a minute
#                   and a half. Needs Debian's g++-aarch64-linux-gnu and qemu-user
#
# MLX=cpu (the default except on macOS), cuda12 or cuda13 selects MLX's back end on Linux.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
ifneq ($(shell uname -s),Darwin)
MLX ?= cpu
endif
NATIVE := nanoegg_mlx/engines/native
THRESHOLDS := nanoegg_mlx/core/normal_thresholds.json
SOURCES := pyproject.toml setup.py $(THRESHOLDS) $(wildcard $(NATIVE)/*.*)
empty :=
comma := ,
commas = $(subst $(empty) $(empty),$(comma),$(strip $(1)))
# $(call install,EXTRAS): a virtual environment with an editable installation of this checkout. One that is there keeps
# its Python, whatever python3 is by now: venv would mix the two. `make clean` removes it.
define install
	@$(BIN)/python -m pip --version >/dev/null 2>&1 || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --editable '.$(if $(strip $(1)),[$(call commas,$(1))])'
	@touch $@
endef

CXX_FILES := $(wildcard $(NATIVE)/*.h $(NATIVE)/*.cpp tests/engines/*.h tests/engines/*.cpp)
CHECK := $(filter-out %/binding.cpp %/kernels.cpp,$(filter %.cpp,$(CXX_FILES)))
CHECK_FLAGS := -std=c++17 -pthread -Wall -Wextra -Wno-unknown-warning-option -Wno-maybe-uninitialized -I$(NATIVE) \
  -Ibuild/check
CHECK_HEADERS := $(filter %.h,$(CXX_FILES)) build/check/normal_steps.h
CASES := build/check/cases.bin
ARM_CXX ?= aarch64-linux-gnu-g++
ARM_RUN ?= qemu-aarch64

.PHONY: quickstart install test lint notebook sanitize sanitize-c test-arm clean
.DELETE_ON_ERROR:

quickstart: install
	$(BIN)/nanoegg prepare --source python-stdlib
	$(BIN)/nanoegg train --config configs/quickstart.toml
	@echo "Next: 'nanoegg eval checkpoints/quickstart --baselines' measures the checkpoint exactly, and"
	@echo "configs/nano-egg.toml is the full-size model ('. $(BIN)/activate' first)."

install: $(VENV)/installed

$(VENV)/installed: $(SOURCES)
	$(call install,$(MLX))

# The test environment includes the user's, so both stamps are renewed.
$(VENV)/installed-test: $(SOURCES)
	$(call install,$(MLX) test)
	@touch $(VENV)/installed

test: lint
	$(BIN)/python -m pytest -n auto

lint: $(VENV)/installed-test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/clang-format --dry-run -Werror $(CXX_FILES) $(wildcard nanoegg_mlx/measure/model_c/*.c)

notebook: $(VENV)/installed-notebook
	$(BIN)/marimo edit notebooks/eggroll_claims.py

$(VENV)/installed-notebook: $(SOURCES)
	$(call install,$(MLX) notebook)
	@touch $(VENV)/installed

sanitize: build/check/sanitized $(CASES)
	build/check/sanitized $(CASES)

sanitize-c: $(VENV)/installed-test
	$(BIN)/python -m tests.measure.c_models

test-arm: build/check/arm $(CASES)
	$(ARM_RUN) -cpu max build/check/arm $(CASES) i8mm,dotprod,neon,portable
	$(ARM_RUN) -cpu cortex-a76 build/check/arm $(CASES) dotprod,neon,portable
	$(ARM_RUN) -cpu cortex-a53 build/check/arm $(CASES) neon,portable

build/check/sanitized: $(CHECK) $(CHECK_HEADERS)
	$(CXX) $(CHECK_FLAGS) -O1 -g -fsanitize=address,undefined -fno-sanitize-recover=all $(CHECK) -o $@

build/check/arm: $(CHECK) $(CHECK_HEADERS)
	$(ARM_CXX) $(CHECK_FLAGS) -O3 -static $(CHECK) -o $@

build/check/normal_steps.h: $(NATIVE)/write_normal_steps.py $(THRESHOLDS)
	$(PYTHON) $< $@

$(CASES): $(VENV)/installed-test $(wildcard nanoegg_mlx/*.py nanoegg_mlx/core/*.py nanoegg_mlx/engines/*.py tests/*.py tests/engines/*.py tests/golden/*)
	@mkdir -p $(@D)
	$(BIN)/python -m tests.engines.write_cases $@

clean:
	rm -rf $(VENV) build *.egg-info
