# Two commands on a machine that has only Python: `make demo` and `make test`. Both make their own
# environment in .venv. PYTHON chooses the interpreter, PYTEST_ARGS is handed to pytest. uv installs
# in a fifth of pip's time; where it cannot (an index that only pip is told of), pip does.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
WORKERS ?= 2
PYTEST_ARGS ?=

# Tests start many processes of Python; without files of bytecode each of them compiles all it imports.
export PYTHONDONTWRITEBYTECODE =

.PHONY: demo test lint bench soak docs clean

demo: $(STAMP)
	$(BIN)/python -m examples.run

test: $(STAMP) lint
	$(BIN)/python -m pytest -n $(WORKERS) --dist loadgroup $(PYTEST_ARGS)

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/mypy

bench: $(STAMP)
	$(BIN)/python -m pytest benchmarks --benchmark-only -p no:randomly -p no:xdist $(PYTEST_ARGS)

soak: $(STAMP)
	STATEPERSIST_PROFILE=soak $(BIN)/python -m pytest -n $(WORKERS) $(PYTEST_ARGS)

docs: $(STAMP)
	$(BIN)/python -m sphinx -W --keep-going -q -b html docs docs/_build

$(STAMP): pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed: make PYTHON=python3.11")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet uv && $(BIN)/uv pip install --quiet --compile-bytecode --python $(BIN)/python --editable '.[dev]' \
	    || $(BIN)/python -m pip install --quiet --editable '.[dev]'
	touch $(STAMP)

clean:
	rm -rf $(VENV) .tox .pytest_cache .mypy_cache .ruff_cache .hypothesis .benchmarks .statepersist dist docs/_build
