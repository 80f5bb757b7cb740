# `make demo` shows the main job, `make check` is what CI runs. Needs Python 3.11+ only: the first target builds .venv.

PYTHON ?= python3
EXTRAS ?= netlab,fast,postgresql
AUDIT  ?= optional
PYTEST_ARGS ?=
WORKERS ?= auto
REPEAT ?= 1
KILLS ?= 300
FAULTS ?= 700
BENCH_ARGS ?=

VENV := .venv
BIN  := $(VENV)/bin
READY := $(VENV)/.ready
# netlab and its Ansible are in the venv, and the programs that they start look for each other on PATH.
# Python keeps what it has compiled, whatever the shell says: the tests start hundreds of programs from these files.
RUN  := PYTHONDONTWRITEBYTECODE= PATH="$(CURDIR)/$(BIN):$$PATH"
CODE := src $(foreach directory,tests bench examples,$(if $(wildcard $(directory)/*),$(directory)))

.DEFAULT_GOAL := help
.PHONY: help venv check docs format format-check lint types audit test coverage demo bench bench-full build chaos clean
.DELETE_ON_ERROR:

help:  ## list the targets
	@sed -n 's/^\([a-z-]*\):.*## /\1\t/p' Makefile | while IFS="$$(printf '\t')" read -r name text; do printf '%-14s%s\n' "$$name" "$$text"; done

venv: $(READY)  ## build .venv with the project, its extras and the tools

# pip 25.1 is the first version with --group.
$(READY): pyproject.toml
	@rm -rf $(VENV)
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "Python 3.11 or newer is needed and $(PYTHON) is not: name one with 'make PYTHON=python3.12 …'" >&2; exit 1; }
	@echo "building $(VENV) (once, and again when pyproject.toml changes)"
	@$(PYTHON) -m venv $(VENV) || { \
	  rm -rf $(VENV); echo "The venv could not be created. Debian has the module in a separate package: apt-get install python3-venv" >&2; exit 1; }
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --upgrade 'pip>=25.1'
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[$(EXTRAS)]' --group dev
	@touch $@

check: format-check lint types audit test  ## everything that must pass before a merge

docs: $(READY)  ## write the tables in docs/ that are generated from the code; a test fails if they are outdated
	$(BIN)/cog -I .ci --verbosity=1 -r docs/*.md

format: $(READY)  ## format the code, and fix what the linter can fix
	$(BIN)/ruff check --fix-only .
	$(BIN)/ruff format .

format-check: $(READY)  ## check the formatting, without changes
	$(BIN)/ruff format --check .

lint: $(READY)  ## ruff
	$(BIN)/ruff check .

# With package bases, because two directories contain a conftest.py.
types: $(READY)  ## mypy, strict
	$(BIN)/mypy --explicit-package-bases $(CODE)

audit: $(READY)  ## known vulnerabilities of the dependencies; AUDIT=required fails where none can be looked up
	$(BIN)/python .ci/audit.py --mode $(AUDIT) $(AUDIT_IGNORE:%=--ignore=%)

# On a busy machine, a test that waits for processes can fail: failed tests are repeated once, alone, and listed.
test: $(READY)  ## all tests; PYTEST_ARGS="-k queue -x" is passed on; REPEAT=0 does not repeat failed ones
	$(RUN) $(BIN)/python -m pytest -n $(WORKERS) --dist loadfile --no-loadscope-reorder $(PYTEST_ARGS) || { status=$$?; \
	  [ $$status = 1 ] && [ "$(REPEAT)" = 1 ] || exit $$status; \
	  echo "FAILED: the tests above are repeated, one after the other" >&2; \
	  $(RUN) $(BIN)/python -m pytest --last-failed --last-failed-no-failures none --exitfirst -rA; }

# Not a part of the tests: Python 3.11 can spin for ever in a traced process when two threads end at nearly the same time
# (a pending call of greenlet's runs a traced callback, and pending calls do not nest).
coverage: $(READY)  ## the tests with code coverage; needs Python 3.12 or newer
	@$(BIN)/python -c 'import sys; sys.exit(sys.version_info < (3, 12))' || { \
	  echo "Python 3.12 or newer is needed: 'make clean', then 'make PYTHON=python3.12 coverage'" >&2; exit 1; }
	$(MAKE) test PYTEST_ARGS="--cov --cov-report=term $(PYTEST_ARGS)"

demo: $(READY)  ## two test runs share one lab host, from start to finish; DEMO=hosts needs no Docker
	$(RUN) $(BIN)/python examples/demo.py $(if $(DEMO),--lab $(DEMO))

bench: $(READY)  ## short benchmarks, 6 minutes; BENCH_ARGS="--only start joining" is passed on
	$(RUN) $(BIN)/python -m bench $(BENCH_ARGS)

bench-full: $(READY)  ## benchmarks with more rounds, and a whole run on the real netlab, 30 minutes
	$(RUN) $(BIN)/python -m bench --full $(BENCH_ARGS)

build: $(READY)  ## build and check sdist and wheel in dist/
	rm -rf dist
	$(BIN)/python -m hatchling build
	$(BIN)/python -m twine check --strict dist/*
	$(BIN)/python .ci/check_dist.py dist

chaos: $(READY)  ## 300 kills of one server, and 700 faults of several hosts; KILLS=… and FAULTS=… change the numbers
	$(RUN) REMOTE_LAB_CHAOS_KILLS=$(KILLS) REMOTE_LAB_CHAOS_FAULTS=$(FAULTS) $(BIN)/python -m pytest tests/chaos -m chaos -s $(PYTEST_ARGS)

clean:  ## remove everything that these targets have created
	rm -rf $(VENV) .demo .mypy_cache .pytest_cache .ruff_cache .hypothesis .coverage .coverage.* build dist
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
