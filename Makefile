# Two commands: `make demo` and `make test`. Both make .venv on first use and reuse it after.
PYTHON ?= python3

.PHONY: demo test lint clean

demo: .venv/.installed
	@ci/demo

test: .venv/.installed
	@ci/lint
	@ci/types
	@ci/test

lint: .venv/.installed
	@ci/lint
	@ci/types

.venv/.installed: pyproject.toml ci/constraints.txt ci/setup
	@PYTHON=$(PYTHON) ci/setup

clean:
	rm -rf .venv build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis
