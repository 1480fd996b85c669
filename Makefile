# Two commands on a machine that has only Python: `make demo` and `make test`. Both make their own
# environment in .venv. PYTHON chooses the interpreter, PYTEST_ARGS is handed to pytest. uv installs
# in a fifth of pip's time; where it cannot (an index that only pip is told of), pip does.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
# One more than two cores: some tests wait.
WORKERS ?= 3
PYTEST_ARGS ?=

# Tests start many processes of Python; without files of bytecode each of them compiles all it imports.
export PYTHONDONTWRITEBYTECODE =

.PHONY: demo test tests lint bench soak docs clean

demo: $(STAMP)
	$(BIN)/python -m examples.run

# A fork takes the longer, the more a process has loaded: what forks most is a run of its own.
FORKING := tests/explorer tests/zoo tests/test_cli.py tests/test_examples.py tests/test_repairs.py \
    tests/test_sceptic.py tests/test_simulator.py tests/conformance/test_reference_stores.py \
    tests/reference/test_every_durable_operation.py
RUN = $(BIN)/python -m pytest -n $(WORKERS)
NONE = [ $$? -eq 5 ] && [ -n "$(PYTEST_ARGS)" ]

test: $(STAMP)
	$(MAKE) --jobs 2 lint tests

tests: $(STAMP)
	$(RUN) $(FORKING) $(PYTEST_ARGS) || { $(NONE); }
	$(RUN) $(FORKING:%=--ignore=%) $(PYTEST_ARGS) || { $(NONE); }

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
	$(BIN)/python -m pip install --quiet --disable-pip-version-check uv \
	    && $(BIN)/uv pip install --quiet --python $(BIN)/python --editable '.[dev]' \
	    || $(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[dev]'
	touch $(STAMP)

clean:
	rm -rf $(VENV) .tox .pytest_cache .mypy_cache .ruff_cache .hypothesis .benchmarks .statepersist dist docs/_build
