# Linewright: every target sets up .venv from the lock file by itself; a second run starts at once.
#   make demo    the bottling line on the wire, started, changed over and checked
#   make test    all tests
#   make peers   what the tests with programs of others need (libmodbus, mbpoll, socat, node-opcua)
#   make bench   what the drivers cost, beside libmodbus, pymodbus and asyncua
#   make check   ruff, mypy, import-linter
#   make lock    renew requirements.lock from pyproject.toml

PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.ready

.PHONY: demo test check peers bench lock setup clean
.DEFAULT_GOAL := setup

setup: $(STAMP)

# Hashes are checked and nothing is built from sources that are not in the lock; the package itself is editable.
$(STAMP): requirements.lock pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit("Linewright needs Python 3.11 or newer; name one: make PYTHON=python3.11" if sys.version_info < (3, 11) else 0)'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements.lock
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation --editable .
	touch $@

demo: $(STAMP)
	$(BIN)/linewright demo

test: $(STAMP) peers
	$(BIN)/python -m pytest

# Costs nothing when all of it is there. What cannot be installed is named, and its tests are skipped.
peers:
	@bench/peers/install

bench: $(STAMP) peers
	$(BIN)/python bench/drivers.py

check: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

# setuptools is the build backend; it is locked with the rest. uv resolves for every platform and Python at once.
lock: $(STAMP)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check uv
	echo 'setuptools>=77' | $(BIN)/uv pip compile --quiet --upgrade pyproject.toml - --extra dev --universal \
		--python-version 3.11 --generate-hashes --no-header --no-annotate --no-emit-index-url -o requirements.lock

clean:
	rm -rf $(VENV) tests/peers/opcua/node_modules .mypy_cache .ruff_cache .pytest_cache .import_linter_cache
