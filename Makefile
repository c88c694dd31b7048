# `make demo` runs the main job, `make test` the tests; each makes the virtual environment first when there is none.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
UV_COMPILE := $(BIN)/uv pip compile --quiet --universal --generate-hashes --python-version 3.11 --no-header \
	--no-emit-index-url --no-emit-find-links pyproject.toml

.PHONY: demo test test-heavy check lock format clean

demo: $(INSTALLED)
	$(BIN)/tiercast demo $(ARGS)

test: $(INSTALLED)
	$(BIN)/python -m pytest

test-heavy: $(INSTALLED)
	$(BIN)/python -m pytest -m heavy -s

check: $(INSTALLED)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	@echo "the locks against pyproject.toml"
	@cp requirements.lock $(VENV)/check.lock && cp requirements-serving.lock $(VENV)/check-serving.lock
	$(UV_COMPILE) --extra dev -o $(VENV)/check.lock
	diff requirements.lock $(VENV)/check.lock
	$(UV_COMPILE) -c requirements.lock -o $(VENV)/check-serving.lock
	diff requirements-serving.lock $(VENV)/check-serving.lock

# Both locks again from pyproject.toml; what still fits keeps its version.
lock: $(INSTALLED)
	$(UV_COMPILE) --extra dev -o requirements.lock
	$(UV_COMPILE) -c requirements.lock -o requirements-serving.lock

format: $(INSTALLED)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

$(INSTALLED): requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 14))' \
		|| { echo "Tiercast needs Python 3.11 to 3.14; say which with: make PYTHON=python3.12 ..."; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements.lock
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation --editable .
	@touch $@

clean:
	rm -rf $(VENV) build dist *.egg-info .mypy_cache .pytest_cache .ruff_cache
