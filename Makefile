PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt
PACKAGING := setup.cfg pyproject.toml constraints.txt

.PHONY: help demo em-demo test test-slow lint docs bench clean

help:
	@echo "make demo     simulate a blend, deblend it, compare with the truth: demo/"
	@echo "make em-demo  learn a prior from blends alone: runs/em-demo/"
	@echo "make test     lint and tests"
	@echo "make test-slow  the tests that take longer: whole runs, killed ones, every proof of an export"
	@echo "make lint     lint, types and layers of imports only"
	@echo "make docs     the documentation as web pages: docs/_build/html/index.html"
	@echo "make bench    compare with peers; options in BENCH=..., see benchmarks/README.md"
	@echo "make clean    remove the environment and everything made"

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/installed: $(PACKAGING) | $(BIN)/python
	$(PIP) -e .
	@touch $@

$(VENV)/installed-dev: $(PACKAGING) | $(BIN)/python
	$(PIP) -e '.[dev]'
	@touch $(VENV)/installed $@

$(VENV)/installed-docs: $(PACKAGING) | $(BIN)/python
	$(PIP) -e '.[docs]'
	@touch $(VENV)/installed $@

demo: $(VENV)/installed
	$(BIN)/python examples/demo.py --out demo

em-demo: $(VENV)/installed
	$(BIN)/tfdeblend simulate --number 160 --size 48 --sources 2-3 --bright 19 --faint 23 --seed 7 --out runs/em-demo/blends
	$(BIN)/tfdeblend em --config training/configs/em/demo.json --out runs/em-demo/em

lint: $(VENV)/installed-dev
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

test: lint
	$(BIN)/python -m pytest -m "not slow" -n auto --maxprocesses 4 --dist loadfile $(PYTEST)

test-slow: $(VENV)/installed-dev
	$(BIN)/python -m pytest -m slow $(PYTEST)

docs: $(VENV)/installed-docs
	$(BIN)/python -m sphinx -b html -W --keep-going -q docs docs/_build/html

bench: $(VENV)/installed
	$(BIN)/python -m benchmarks $(BENCH)

clean:
	rm -rf $(VENV) demo bench build dist docs/_build *.egg-info .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis
	find . -name __pycache__ -not -path './.git/*' -prune -exec rm -rf {} +
