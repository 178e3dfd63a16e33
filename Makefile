# Two commands for a bare clone with Python 3.11 or newer: `make demo` and `make test`.
PYTHON ?= python3
VENV ?= .venv
CONSTRAINTS ?= constraints.txt
BIN := $(VENV)/bin
CXX ?= g++
SANITIZED := build/sanitize/_native.so

.PHONY: demo test lint unit interpret pretend old-stack fuzz sanitize bench bench_warm page docs clean

# Data, training, evaluation, cost, one HTML report. An interrupted one goes on.
demo: $(VENV)/ready
	$(BIN)/patchrec-fast demo $(if $(DATA),--data $(DATA)) --out report

test: lint unit interpret pretend

lint: $(VENV)/ready
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# Without a GPU everything but the Triton numerics: those need an interpreter that is chosen before Triton is imported.
# Two processes of one torch thread each: the models of the tests are too small to share out.
unit: $(VENV)/ready
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2

# The interpreter makes a torch call an instruction, each too small to share out: one thread a process here too.
interpret: $(VENV)/ready
	OMP_NUM_THREADS=1 TRITON_INTERPRET=1 $(BIN)/python -m pytest -n 2 tests/kernels

# What Python does with a GPU, on a CUDA device that is the host (tests/pretend): results, waits, graphs, no times.
# The device must be there before torch is imported. Its operators are compiled the first time, in about a minute.
pretend: $(VENV)/ready
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 -p tests.pretend.plugin tests/pretend

# The oldest versions that are tested, in an environment of 5 GB: PyPI has torch 2.11 with CUDA alone. Not in CI.
old-stack:
	$(MAKE) VENV=.venv-old CONSTRAINTS=constraints-old.txt unit interpret

# Random calls of compress against float64, for so many seconds. A failure prints the seed that repeats it.
SECONDS ?= 60
fuzz: $(VENV)/ready
	$(BIN)/python -m tests.ops.fuzz --seconds $(SECONDS)

# csrc under AddressSanitizer and UndefinedBehaviorSanitizer, driven by the operator tests.
sanitize: $(VENV)/ready $(SANITIZED)
	LD_PRELOAD="$$($(CXX) -print-file-name=libasan.so) $$($(CXX) -print-file-name=libubsan.so)" \
	ASAN_OPTIONS=detect_leaks=0:verify_asan_link_order=0 UBSAN_OPTIONS=print_stacktrace=1 \
	PATCHREC_FAST_NATIVE=$(abspath $(SANITIZED)) $(BIN)/python -m pytest -s tests/ops -k "not compile and not 2_to_31"

$(SANITIZED): $(wildcard csrc/*)
	mkdir -p $(@D)
	$(CXX) -std=c++17 -O1 -g -fno-omit-frame-pointer -fsanitize=address,undefined -fno-sanitize-recover=all \
	  -Wno-psabi -fPIC -shared csrc/*.cpp -o $@

# Appends to benchmarks/results, of a tree without uncommitted changes: commit one run's results before the next.
bench: $(VENV)/ready
	$(BIN)/python -m pytest --benchmark --record

# The same with a heap that keeps its pages.
bench_warm: $(VENV)/ready
	MALLOC_MMAP_MAX_=0 MALLOC_TRIM_THRESHOLD_=100000000000 $(BIN)/python -m pytest --benchmark --record

# The tables of docs/benchmarks.md, from benchmarks/results.
page: $(VENV)/ready
	$(BIN)/python -m benchmarks.page

# build/docs/index.html. A link or a name that is not there is an error.
docs: $(VENV)/ready
	$(BIN)/python -m sphinx -W --keep-going -q -b html docs build/docs

$(VENV)/ready: pyproject.toml setup.py $(CONSTRAINTS) $(wildcard csrc/*)
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint $(CONSTRAINTS) --editable '.[test]'
	touch $@

clean:
	rm -rf $(VENV) .venv-old build dist report *.egg-info patchrec_fast/*.so
