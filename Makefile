# Two commands do everything: `make demo` and `make test`. PYTHON=... chooses the interpreter (3.10 or newer).
# As root the system's python3 is preferred: the test cluster runs as an ordinary user, who cannot execute one below /root.
ifeq ($(shell id -u),0)
candidates := /usr/bin/python3 /usr/bin/python3.14 /usr/bin/python3.13 /usr/bin/python3.12 /usr/bin/python3.11 /usr/bin/python3.10 python3
else
candidates := python3 /usr/bin/python3 python3.14 python3.13 python3.12 python3.11 python3.10
endif
usable = $(shell $(1) -c 'import sys; sys.exit(sys.version_info < (3, 10))' 2>/dev/null && echo $(1))
PYTHON ?= $(firstword $(foreach candidate,$(candidates),$(call usable,$(candidate))))

VENV := .venv
SCHEDULER ?= local
# CONSTRAINTS=requirements-dev.lock installs the versions that development was last checked with.
CONSTRAINTS ?=
# Most tests wait: more processes than cores. PYTEST_ARGS="-n 0 tests/unit" runs some alone.
PYTEST_ARGS ?=
pip := $(VENV)/bin/python -m pip install -qq --disable-pip-version-check $(if $(CONSTRAINTS),--constraint $(CONSTRAINTS))

.NOTPARALLEL:
.PHONY: help demo test lint clean packages
.DEFAULT_GOAL := help

help:
	@echo "make demo                  run examples/bulk_modulus.py on an embedded cluster (nothing but Python needed)"
	@echo "make demo SCHEDULER=slurm  the same on a real SLURM behind a real sshd, as an ordinary user"
	@echo "make test                  install what is missing, then lint, types and all tests"
	@echo "make lint                  ruff and mypy only"
	@echo "make clean                 remove what these targets made in this folder"
	@echo "PYTHON=/path/to/python3    choose the interpreter (now: $(or $(PYTHON),none found))"

$(VENV)/bin/python:
	@test -n "$(PYTHON)" || { echo "No Python 3.10 or newer found; name one: make PYTHON=/path/to/python3" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV) || { rm -rf $(VENV); echo "$(PYTHON) cannot make a virtual environment (Debian, Ubuntu: apt install python3-venv)" >&2; exit 1; }

# One stamp per extra, so that `make demo` does not wait for the test tools.
$(VENV)/.installed-%: $(VENV)/bin/python pyproject.toml
	$(pip) --editable '.[$*]'
	@touch $@

demo: $(VENV)/.installed-examples
	@$(VENV)/bin/python -m remoteexec.demo --scheduler $(SCHEDULER)

packages:
	@tests/packages.sh

lint: packages $(VENV)/.installed-test
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy

test: lint
	$(VENV)/bin/python -m pytest -n 3 $(PYTEST_ARGS)

clean:
	rm -rf $(VENV) build dist .mypy_cache .pytest_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
