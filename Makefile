PYTHON ?= python3

.PHONY: demo test lint format clean

demo: .venv/.installed
	.venv/bin/python -m training demo

test: lint
	.venv/bin/python -m pytest --cov=saeuron --cov-report=term --cov-fail-under=90

lint: .venv/.installed
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .

format: .venv/.installed
	.venv/bin/ruff check --fix .
	.venv/bin/ruff format .

# Caches only: .venv is slow to rebuild, and out/ holds results.
clean:
	rm -rf .pytest_cache .ruff_cache .coverage
	find . -path ./.venv -prune -o -name __pycache__ -type d -prune -exec rm -rf {} +

# torch goes first and alone: it is the big one, and the rest must take the build it chose.
.venv/.installed: requirements-dev.lock
	$(PYTHON) -m venv .venv
	.venv/bin/python -m pip install $$(grep '^torch==' $<)
	.venv/bin/python -m pip install -r $<
	touch $@
