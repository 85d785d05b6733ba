# Everything runs from .venv, made on first use with the versions of constraints.txt.
PYTHON ?= python3.11
VENV := .venv
BIN := $(VENV)/bin
JOBS ?= 4
PYTEST := OMP_NUM_THREADS=1 $(VENV)/bin/python -m pytest -n $(JOBS) --dist loadfile
STAMP := $(VENV)/.installed

.PHONY: demo test test-all lint bench docs integrations clean

demo: $(STAMP)  ## replay a simulated SDSS season and watch it being classified
	@$(BIN)/skyheed demo

test: $(STAMP)  ## every test, four files at a time, as most wait for servers (JOBS=0: one); starts and stops the servers it needs
	@$(PYTEST)

test-all: $(STAMP)  ## the long forms too: faults, fuzzing, training
	@$(PYTEST) -m "long or not long"

lint: $(STAMP)
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy
	@$(BIN)/lint-imports

bench: $(STAMP)  ## stream benchmark; last line is JSON
	@$(BIN)/python benchmarks/stream.py

$(STAMP): pyproject.toml constraints.txt
	@command -v $(PYTHON) >/dev/null || { echo "skyheed needs Python 3.11: set PYTHON=/path/to/python3.11"; exit 1; }
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "installing into $(VENV) (a few minutes the first time)"
	@# torch first: its pinned version decides which build the rest resolves to
	@$(BIN)/python -m pip install -q --disable-pip-version-check -c constraints.txt torch
	@$(BIN)/python -m pip install -q --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@touch $@

docs: $(STAMP)  ## the documentation site, docs/_build/index.html; warnings are errors
	@$(BIN)/python -m pip install -q --disable-pip-version-check -c constraints.txt -e '.[docs]'
	@$(BIN)/python -m sphinx -W --keep-going -q -b html docs docs/_build

integrations:  ## the tests of integrations/, each package in an environment of its own
	@for package in integrations/*/; do \
	  echo "$$package"; env="$$package.venv"; \
	  test -x $$env/bin/python || $(PYTHON) -m venv $$env || exit 1; \
	  $$env/bin/python -m pip install -q --disable-pip-version-check . "./$$package[dev]" || { \
	    echo "SKIPPED: $$package or its host does not install here (see above)"; continue; }; \
	  (cd $$package && .venv/bin/python -m pytest -q -c pyproject.toml --rootdir .) || exit 1; \
	done

clean:
	rm -rf $(VENV) build dist .pytest_cache .mypy_cache .ruff_cache
