# Two commands from a fresh clone: `make demo` and `make test`.
PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV   := .venv
BIN    := $(VENV)/bin

# What the tests start besides Python: servers, shells, compilers, emulators.
APT    := openssh-server busybox mksh toybox g++ g++-aarch64-linux-gnu qemu-user-static \
          libssl-dev nlohmann-json3-dev

.PHONY: env demo endpoints test test-board check clean

# The stamp follows pyproject.toml: an unchanged environment costs nothing.
$(VENV)/.installed: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[dev]'
	touch $@

env: $(VENV)/.installed

demo: env
	$(BIN)/python -m tools.demo --workspace workspace/demo

endpoints: env
	$(BIN)/python -m tools.endpoints

# Where they can be installed, they are; a test whose tools are missing is skipped, and says so.
test: env
	@dpkg-query -W $(APT) >/dev/null 2>&1 || { \
	  [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null \
	  && apt-get update -qq && apt-get install -y -qq --no-install-recommends $(APT) >/dev/null; } \
	  || echo "not all of $(APT) are installed: tests that need them will be skipped"
	$(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder

# Whole emulated boards with kernels of their own, one with power sensors; for the nightly, as root.
BOARD_APT := qemu-system-arm qemu-system-x86 e2fsprogs
test-board: env
	@dpkg-query -W $(BOARD_APT) >/dev/null 2>&1 \
	  || { apt-get update -qq && apt-get install -y -qq $(BOARD_APT) >/dev/null; }
	EDGELOOP_BOARD=1 $(BIN)/python -m pytest -m board tests/emulated

check: env
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

clean:
	rm -rf $(VENV) workspace
