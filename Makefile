# Two commands from a fresh clone: `make demo` and `make test`.
PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV   := .venv
BIN    := $(VENV)/bin

.PHONY: env demo test check clean

# The stamp follows pyproject.toml: an unchanged environment costs nothing.
$(VENV)/.installed: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[dev]'
	touch $@

env: $(VENV)/.installed

demo: env
	$(BIN)/python -m tools.demo --workspace workspace/demo

# The tests start a real OpenSSH server; where it can be installed, it is.
test: env
	@command -v sshd >/dev/null || test -x /usr/sbin/sshd || { \
	  [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null \
	  && apt-get update -qq && apt-get install -y -qq openssh-server >/dev/null; } \
	  || echo "no OpenSSH server: tests that need one will be skipped"
	$(BIN)/python -m pytest

check: env
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

clean:
	rm -rf $(VENV) workspace
