# Everything happens in .venv, which `install` makes and keeps up to date (tools/setup_env.py does the work).
#
#   PYTHON       the Python (3.11 or newer) to make .venv with; default: the one .venv has, else python3
#   PIP_ARGS     more arguments for every `pip install`, for instance an --extra-index-url with a CPU-only torch;
#                remembered by .venv, and forgotten with `make install PIP_ARGS=`
#   PYTEST_ARGS  more arguments for pytest

.DEFAULT_GOAL := help
.PHONY: help install demo test test-fast lint docs benchmark clean

ifeq ($(origin PYTHON),undefined)
PYTHON := $(shell .venv/bin/python -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null \
	&& echo .venv/bin/python || echo python3)
endif

help: ## list the targets
	@echo 'make TARGET [PYTHON=python3.12] [PIP_ARGS="…"] [PYTEST_ARGS="…"]'
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  %-10s %s\n", $$1, $$2 }' $(firstword $(MAKEFILE_LIST))

install: ## set .venv up: torch, detectron2, this package; a second run has nothing to do
	@"$(PYTHON)" -c 'import sys; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1 || { echo \
		'setup: PYTHON=$(PYTHON) is no working Python 3.11 or newer: install one, or name it as in' \
		'make install PYTHON=/path/to/python3.12' >&2; exit 1; }
	@"$(PYTHON)" tools/setup_env.py

demo: install ## predict, train and evaluate on a small example
	.venv/bin/python tools/demo.py

test: install ## run the tests
	.venv/bin/python -m pytest -q tests -n 2 --dist loadscope --no-loadscope-reorder $(PYTEST_ARGS)

test-fast: install ## run the tests that take less than a few seconds each
	.venv/bin/python -m pytest -q tests -m "not slow" -n 2 --dist loadscope --no-loadscope-reorder $(PYTEST_ARGS)

lint: install ## check style, formatting and the layers of imports
	.venv/bin/python -m ruff check .
	.venv/bin/python -m ruff format --check .
	.venv/bin/lint-imports

docs: install ## build the documentation into build/site; open build/site/index.html
	.venv/bin/python -m mkdocs build --strict -d build/site

benchmark: install ## measure speed and memory against Detectron2, on the GPU if there is one
	.venv/bin/python tools/benchmark.py all --against detectron2

clean: ## remove builds and caches, but not .venv
	rm -rf build dist *.egg-info .pytest_cache .ruff_cache
	find . -name .venv -prune -o -name __pycache__ -type d -prune -exec rm -rf {} +
