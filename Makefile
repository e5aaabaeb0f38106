# Two commands for a newcomer: `make demo`, `make test`. The rest is for those who work on it.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.installed

.PHONY: demo test soak bench check wheel format clean

demo:
	@PYTHON=$(PYTHON) bash bench/demo.sh

$(STAMP): pyproject.toml .ci/constraints.txt bench/install.sh
	@PYTHON=$(PYTHON) bash bench/install.sh

test: $(STAMP)
	$(BIN)/pytest -m "not soak" $(PYTEST_ARGS)

soak: $(STAMP)
	$(BIN)/pytest -m soak --timeout 7200 $(PYTEST_ARGS)

bench: $(STAMP)
	$(BIN)/python -m bench $(BENCH_ARGS)

check: $(STAMP)
	$(BIN)/ruff format --check
	$(BIN)/ruff check
	$(BIN)/mypy
	$(BIN)/pyright --pythonpath $(BIN)/python
	$(BIN)/lint-imports --no-cache

format: $(STAMP)
	$(BIN)/ruff format
	$(BIN)/ruff check --fix

wheel: $(STAMP)
	$(BIN)/pip wheel --no-deps -w dist .

clean:
	rm -rf build dist $(VENV) .demo
