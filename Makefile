# Shortcuts for a checkout with its environment in .venv (see CONTRIBUTING.md).
.PHONY: help format lint types test check docs bench wheel ci

BIN := $(if $(wildcard .venv/bin),.venv/bin/,)

help:    ## list the targets
	@grep -hE '^[a-z]+: ' $(MAKEFILE_LIST) | sed 's/:.*## /\t/'

format:  ## format the code and mend what ruff can mend
	$(BIN)ruff format . && $(BIN)ruff check --fix .

lint:    ## formatting and lint, as CI sees them
	$(BIN)ruff format --check . && $(BIN)ruff check .

types:   ## mypy on the package
	$(BIN)mypy

test:    ## all tests that this machine can run
	$(BIN)pytest -q -n auto

check: lint types test  ## what a pull request must pass

docs:    ## build the documentation into site/
	$(BIN)mkdocs build --strict

bench:   ## a quick pass over the benchmarks
	$(BIN)python -m benchmarks run --quick

wheel:   ## build the wheel into dist/
	$(BIN)pip wheel --no-deps -w dist .

ci:      ## everything, in a fresh clone only: it makes its own environments
	bash .ci/run
