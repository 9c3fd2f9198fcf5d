# `make run` and `make test` need nothing but make and Python 3.11 or newer: the first call of any target sets up
# the virtual environment .venv with the pinned packages, later ones use it as it is.
#     make test PYTHON=python3.13 VENV=.local/python3.13      another Python, in an environment of its own

VENV   := .venv
PYTHON := $(shell for python in python3 python3.13 python3.12 python3.11 /usr/bin/python3; do \
	$$python -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$python && break; done)
VENV_PYTHON := $(VENV)/bin/python
# Its date is that of the last installation, so pip runs again only when a requirement changes.
INSTALLED   := $(VENV)/installed

.PHONY: help run test test-kafka chaos check
.DEFAULT_GOAL := help

help: ## say what there is
	@sed -n 's/^\([a-z-]*\):.*## /  make \1\t/p' Makefile | expand -t 22

run: $(INSTALLED) ## everything on this machine, the page at http://localhost:8501, until Ctrl-C
	@exec env PATH="$(abspath $(VENV))/bin:$$PATH" PYTHONUNBUFFERED=1 \
		END_WITH_HONCHO="$$(command -v setpriv >/dev/null && echo setpriv --pdeathsig HUP)" \
		$(VENV_PYTHON) -m honcho start

test: $(INSTALLED) ## the whole test suite, on the embedded broker and database
	@exec $(VENV_PYTHON) -m pytest $(ARGS)

test-kafka: $(INSTALLED) ## the same on a real Apache Kafka (needs Java 17 and, the first time, Maven)
	@exec $(VENV_PYTHON) -m pytest --kafka apache $(ARGS)

chaos: $(INSTALLED) ## a long campaign of crashes, and a count of what was lost
	@exec $(VENV_PYTHON) -m tests.chaos $(ARGS)

check: $(INSTALLED) ## ruff and mypy
	$(VENV_PYTHON) -m ruff check .
	$(VENV_PYTHON) -m ruff format --check .
	$(VENV_PYTHON) -m mypy .

# Debian keeps the part of Python that makes virtual environments (ensurepip) in a package of its own.
$(INSTALLED): requirements.txt requirements-dev.txt
	@test -n "$(PYTHON)" || { echo "make: no Python 3.11 or newer found: install one, or name it: make PYTHON=..." >&2; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || { \
		if [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then \
			echo "Installing python3-venv ..."; \
			apt-get -qq update && apt-get -qq install -y --no-install-recommends python3-venv >/dev/null; \
		fi; \
		$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || \
		{ echo "make: $(PYTHON) cannot make virtual environments yet: sudo apt-get install python3-venv" >&2; exit 1; }; \
	}
	@echo "Setting up $(VENV) with the packages of requirements-dev.txt, once ..."
	@$(VENV_PYTHON) -c 'import pip' 2>/dev/null || $(PYTHON) -m venv --clear $(VENV)
	@$(VENV_PYTHON) -m pip install --disable-pip-version-check --quiet -r requirements-dev.txt
	@touch $@
