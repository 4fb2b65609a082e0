# Every target makes .venv when it is missing: about 6 GB, a minute or two with a near registry.
PYTHON ?= python3
VENV := .venv
PY := $(VENV)/bin/python

.PHONY: demo demo-generate test test-long study check format golden clean
.DEFAULT_GOAL := test

$(VENV)/.installed: pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "giftwrap needs Python 3.11 or newer; found $$($(PYTHON) -V). Name one: make PYTHON=python3.12 ..." >&2; exit 2; }
	$(PYTHON) -m venv $(VENV)
	$(PY) -m pip install --quiet --disable-pip-version-check --editable '.[dev]'
	@touch $@

demo: $(VENV)/.installed
	$(PY) -m benchmarks.demo

# Its last row, some fifteen minutes more: a generator learns the digits, and students learn from its images.
demo-generate: $(VENV)/.installed
	$(PY) -m benchmarks.studies.digits_generator --folder runs/demo/generated --results runs/demo/generated.jsonl

test: $(VENV)/.installed
	$(PY) -m pytest -n auto --dist worksteal

test-long: $(VENV)/.installed
	$(PY) -m pytest -m long

study: $(VENV)/.installed
	$(PY) -m benchmarks.studies.study

check: $(VENV)/.installed
	$(VENV)/bin/ruff check
	$(VENV)/bin/ruff format --check
	$(VENV)/bin/mypy
	$(VENV)/bin/lint-imports

format: $(VENV)/.installed
	$(VENV)/bin/ruff check --fix
	$(VENV)/bin/ruff format

# The names, defaults and helps of all flags, which a test compares: look at the difference before you commit it.
golden: $(VENV)/.installed
	$(PY) -m tests.journeys.test_flags

clean:
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache .import_linter_cache *.egg-info
