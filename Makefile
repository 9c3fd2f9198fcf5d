# `make run` and `make test` need only make, bash and Python 3.11 or newer: the first call of a target installs the locked
# packages it needs into the virtual environment .venv; later calls reuse it.
#     make test PYTHON=python3.13 VENV=.local/python3.13      another Python, in its own environment

VENV   := .venv
PYTHON := $(shell for python in python3 python3.14 python3.13 python3.12 python3.11 /usr/bin/python3; do \
	$$python -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$python && break; done)
VENV_PYTHON := $(VENV)/bin/python
# Installing a lock file touches the file of the same name in .venv, so pip runs again only when the lock changes.
INSTALLED     := $(VENV)/requirements-local.txt
INSTALLED_DEV := $(VENV)/requirements-dev.txt
# An environment is of no use once its Python is gone, upgraded or too old: then it is set up again.
USABLE := $(VENV_PYTHON) -c 'import sys, pip._internal.cli.main; sys.exit(sys.version_info < (3, 11))' 2>/dev/null
$(shell $(USABLE) || rm -f $(INSTALLED) $(INSTALLED_DEV))
unexport PYTHONPATH PYTHONHOME  # pip would take packages found there for installed

.PHONY: help run cluster test chaos check install lock
.DEFAULT_GOAL := help
.NOTPARALLEL:  # with -j in MAKEFLAGS, two pips would set up one environment

help: ## list the targets
	@sed -n 's/^\([a-z-]*\):.*## /  make \1\t/p' Makefile | expand -t 22

run: $(INSTALLED) ## everything on this machine, the page at http://localhost:8501, until Ctrl-C
	@$(VENV_PYTHON) -m pipeline.local_stack.kafka_server
	@exec env PATH="$(abspath $(VENV))/bin:$$PATH" PYTHONUNBUFFERED=1 PYTHONUTF8=1 \
		END_WITH_HONCHO="$$(setpriv --pdeathsig HUP true 2>/dev/null && echo setpriv --pdeathsig HUP)" \
		$(VENV_PYTHON) -m honcho start

# The two addresses that local_stack.py --cluster prints.
cluster: export KAFKA_BOOTSTRAP_SERVERS = localhost:9092,localhost:9093,localhost:9094
cluster: export DATABASE_URL = postgresql://kafka_user:kafka_password@localhost:5432,localhost:5433/kafka_db?target_session_attrs=read-write
cluster: export LOCAL_STACK = --cluster
cluster: run ## the same with three brokers, a primary and a standby: kill any of them

test: $(INSTALLED_DEV) ## the whole test suite
	@exec $(VENV_PYTHON) -m pytest --numprocesses 5 --dist loadgroup $(ARGS)

chaos: $(INSTALLED_DEV) ## a long campaign of faults, which counts lost trades
	@exec $(VENV_PYTHON) -m tests.chaos $(ARGS)

check: $(INSTALLED_DEV) ## ruff and mypy
	$(VENV_PYTHON) -m ruff check .
	$(VENV_PYTHON) -m ruff format --check .
	$(VENV_PYTHON) -m mypy .

install: $(INSTALLED) $(INSTALLED_DEV) ## only the set-up that run and test do anyway

lock: $(INSTALLED_DEV) ## write requirements*.txt and the lists of jars again, after changing a version
	$(VENV_PYTHON) -m pip install --quiet uv
	$(COMPILE) --group dev --group local -o requirements-dev.txt
	$(COMPILE) --constraint requirements-dev.txt --group local -o requirements-local.txt
	$(COMPILE) --constraint requirements-dev.txt -o requirements.txt
	$(VENV_PYTHON) -m tests.lock_jars pipeline/local_stack/kafka.lock benchmarks/peers/connect.lock

COMPILE = $(VENV_PYTHON) -m uv pip compile pyproject.toml --quiet --universal --generate-hashes --no-annotate \
	--custom-compile-command "make lock"

# Debian ships the part of Python that creates virtual environments (ensurepip) in a separate package.
$(VENV)/requirements-%.txt: requirements-%.txt
	@test -n "$(PYTHON)" || { echo "make: no Python 3.11 or newer found: install one, or name it: make PYTHON=..." >&2; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || { \
		package=$$($(PYTHON) -c 'import sys; print("python%d.%d-venv" % sys.version_info[:2])'); \
		if [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then \
			echo "Installing $$package ..."; \
			apt-get -qq update && DEBIAN_FRONTEND=noninteractive apt-get -qq install -y --no-install-recommends $$package >/dev/null; \
		fi; \
		$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || \
		{ echo "make: $(PYTHON) cannot make virtual environments yet: sudo apt-get install $$package" >&2; exit 1; }; \
	}
	@echo "Setting up $(VENV) with the packages of $<, once ..."
	@$(USABLE) || { umask 022; $(PYTHON) -m venv --clear $(VENV); }
	@umask 022; bash -o pipefail -c '"$$0" -m pip install --no-user --disable-pip-version-check --progress-bar off -r "$$1" | \
		{ grep --line-buffered -oE "(Downloading|Using cached) .* MB\)|Installing collected packages" || true; }' \
		$(VENV_PYTHON) $<
	@touch $@
