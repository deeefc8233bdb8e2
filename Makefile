# Everything a newcomer needs, from a bare clone: `make demo` and `make test`.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
WORKERS ?= 2
GALLERY := build/site/gallery
PYTEST := OMP_NUM_THREADS=1 $(BIN)/pytest -n $(WORKERS) --dist worksteal

.PHONY: demo test check lint types layers tests test-slow test-several test-browser test-axe test-lowest faults faults-workers fuzz format clean
.PHONY: docs gallery tutorials dist startup verify-types test-integrations test-pythons

demo: $(VENV)/.installed
	$(BIN)/shoal compress

test: lint types layers tests

# For daily work: all but the tests of whole compressions and trainings.
check: lint types layers
	$(PYTEST) -m 'not heavy and not slow and not browser'

lint: $(VENV)/.developing
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(VENV)/.developing
	$(BIN)/mypy

layers: $(VENV)/.developing
	$(BIN)/lint-imports --no-cache

tests: $(VENV)/.developing
	$(PYTEST)

test-slow: $(VENV)/.developing
	$(BIN)/pytest -m slow

# Of the slow ones those of workers and of several processes: under three minutes on two idle cores.
test-several: $(VENV)/.developing
	$(PYTEST) -m several

# Lightning and the experiment trackers as they are, in an environment of their own.
test-integrations:
	$(PYTHON) -m venv .venv-integrations
	.venv-integrations/bin/python -m pip install --quiet --editable '.[dev]' lightning tensorboard mlflow wandb trackio
	.venv-integrations/bin/pytest -m slow tests/epsilon/test_gated_training.py tests/training/test_tracking.py

# The daily tests under other Pythons that are installed: make test-pythons PYTHONS="python3.12 python3.13"
PYTHONS ?= python3.12 python3.13
test-pythons:
	for python in $(PYTHONS); do \
	  $$python -m venv .venv-$$python && \
	  .venv-$$python/bin/python -m pip install --quiet --editable '.[dev]' && \
	  OMP_NUM_THREADS=1 .venv-$$python/bin/pytest -n $(WORKERS) --dist worksteal -m 'not heavy and not slow and not browser' || exit 1; \
	done

test-browser: $(VENV)/.developing
	$(BIN)/pytest -m browser

# The site: every warning is an error, and so is a public name that no page documents.
docs: $(VENV)/.developing $(GALLERY)/runs.html
	$(BIN)/python -m pip install --quiet --editable '.[docs]'
	$(BIN)/sphinx-build --fail-on-warning --keep-going --quiet docs build/docs

# The reports that the site shows, made anew: two to five minutes.
gallery:
	rm -rf $(GALLERY)
	$(MAKE) $(GALLERY)/runs.html

$(GALLERY)/runs.html: | $(VENV)/.developing
	rm -rf $(GALLERY)
	$(BIN)/shoal compress --out $(GALLERY)/one-point
	$(BIN)/shoal compress digits-resnet digits --remove 20 --recover 100 --out $(GALLERY)/twenty
	$(BIN)/shoal compress digits-resnet digits --macs 0.3 --images 512 --recover 100 --race 0 --out $(GALLERY)/replaced
	$(BIN)/shoal scan digits-resnet digits --fast --out $(GALLERY)/scan
	$(BIN)/shoal train --out $(GALLERY)/train
	find $(GALLERY) -type f ! -name report.html ! -name record.json -delete
	$(BIN)/shoal report $(GALLERY)/one-point $(GALLERY)/twenty $(GALLERY)/replaced --out $@

# The notebooks, run again; their outputs are kept in them.
tutorials: $(VENV)/.developing
	$(BIN)/python scripts/tutorials.py

# axe-core, from npm, looks for what keeps people from using the reports.
test-axe: $(VENV)/.developing
	npm install --silent --no-save --prefix build/axe axe-core
	AXE=build/axe/node_modules/axe-core/axe.min.js $(BIN)/pytest -m browser tests/report/test_axe.py

# The tests of daily work with the lowest version of every dependency, in an environment of its own.
test-lowest: $(VENV)/.developing
	$(PYTHON) -m venv .venv-lowest
	$(BIN)/python scripts/lowest.py > .venv-lowest/constraints.txt
	.venv-lowest/bin/python -m pip install --quiet --constraint .venv-lowest/constraints.txt --editable '.[dev]'
	OMP_NUM_THREADS=1 .venv-lowest/bin/pytest -n $(WORKERS) --dist worksteal -m 'not heavy and not slow and not browser'

# The wheel and the source distribution, each installed into a fresh environment and tried there.
dist: $(VENV)/.developing
	$(BIN)/python -m pip install --quiet build
	$(BIN)/python scripts/dist.py

# How long `import shoal` and `--help` take.
startup: $(VENV)/.developing
	$(BIN)/python scripts/startup.py

# Whether everything public has types, for those who use Shoal from typed code.
verify-types: $(VENV)/.developing
	$(BIN)/python -m pip install --quiet basedpyright
	PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/python scripts/typed.py

# Kills, full disks, two owners: docs/reliability.md from what was measured. Takes about a quarter of an hour.
faults: $(VENV)/.developing
	OMP_NUM_THREADS=1 $(BIN)/python scripts/faults --mount --page docs/reliability.md

# Workers of Ray that are killed, cut off, and left without disk, host and head (hosts: as root).
faults-workers: $(VENV)/.developing
	OMP_NUM_THREADS=1 $(BIN)/python scripts/faults/workers.py

# FUZZ_SECONDS=600 for ten minutes; `pip install atheris` for a mutator that follows coverage.
fuzz: $(VENV)/.developing
	OMP_NUM_THREADS=1 $(BIN)/python scripts/fuzz.py

format: $(VENV)/.developing
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf $(VENV) .venv-lowest .venv-integrations .venv-python* build dist .mypy_cache .pytest_cache .ruff_cache

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/.installed: pyproject.toml | $(VENV)/bin/python
	$(BIN)/python -m pip install --quiet --editable .
	touch $@

$(VENV)/.developing: pyproject.toml | $(VENV)/bin/python
	$(BIN)/python -m pip install --quiet --editable '.[dev]'
	touch $@ $(VENV)/.installed
