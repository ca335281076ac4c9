# make demo          install into .venv, fetch the base model once, run the demo federation, print where the report is
# make demo QUICK=1  the same with shepherd run --quick
# make test          install with the test extra, then lint, format check, types and the default tests
# make clean         remove .venv and build leftovers (runs/ and the model cache stay)
#
# Needs Python >= 3.11 with venv, and make. PYTHON=/path/to/python picks another interpreter, PIP_ARGS= goes to pip.

VENV := .venv
BIN := $(VENV)/bin
PIP_ARGS ?=
QUICK ?=
PYTHON ?= $(shell for name in python3 python3.11 python3.12 python3.13 python3.14 python; do \
	"$$name" -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1 && echo "$$name" && break; done)

export PYTHONPATH :=
export PIP_DISABLE_PIP_VERSION_CHECK := 1

.PHONY: demo test clean
.DELETE_ON_ERROR:

demo: $(VENV)/installed
	$(BIN)/shepherd model pull smollm2-135m
	$(BIN)/shepherd run demo $(if $(QUICK),--quick)
	@echo "         . $(BIN)/activate    # puts shepherd on the path of this shell"

test: $(VENV)/installed-test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/python -m pytest -n logical --maxprocesses 4 --dist worksteal

$(BIN)/python:
	@test -n "$(PYTHON)" || { echo "error: no Python >= 3.11 with the venv module was found" >&2; \
		echo "hint: install one (on Debian and Ubuntu also python3-venv), or make PYTHON=/path/to/python" >&2; exit 2; }
	"$(PYTHON)" -m venv $(VENV)

# Reinstalled only when the metadata or the pins change; the sources themselves are linked, not copied.
$(VENV)/installed: pyproject.toml constraints.txt | $(BIN)/python
	$(BIN)/python -m pip install -q $(PIP_ARGS) -c constraints.txt -e .
	@touch $@

$(VENV)/installed-test: $(VENV)/installed
	$(BIN)/python -m pip install -q $(PIP_ARGS) -c constraints.txt -e '.[test]'
	@touch $@

clean:
	rm -rf $(VENV) .nox build dist src/*.egg-info .pytest_cache .ruff_cache .mypy_cache .hypothesis
