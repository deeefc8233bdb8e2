# Everything a newcomer needs, from a bare clone: `make demo` and `make test`.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
WORKERS ?= 2

.PHONY: demo test lint types layers tests test-slow test-browser format clean

demo: $(VENV)/.installed
	$(BIN)/shoal compress

test: lint types layers tests

lint: $(VENV)/.developing
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(VENV)/.developing
	$(BIN)/mypy

layers: $(VENV)/.developing
	$(BIN)/lint-imports --no-cache

tests: $(VENV)/.developing
	OMP_NUM_THREADS=1 $(BIN)/pytest -n $(WORKERS)

test-slow: $(VENV)/.developing
	$(BIN)/pytest -m slow

test-browser: $(VENV)/.developing
	$(BIN)/pytest -m browser

format: $(VENV)/.developing
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf $(VENV) .mypy_cache .pytest_cache .ruff_cache

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/.installed: pyproject.toml | $(VENV)/bin/python
	$(BIN)/python -m pip install --quiet --editable .
	touch $@

$(VENV)/.developing: pyproject.toml | $(VENV)/bin/python
	$(BIN)/python -m pip install --quiet --editable '.[dev]'
	touch $@ $(VENV)/.installed
