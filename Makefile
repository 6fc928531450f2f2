ENV ?= halfcheetah
PYTHON ?= python3
export OMP_NUM_THREADS = 1

.PHONY: bench test lint

bench: .venv/installed
	.venv/bin/python -m lowrank_rl.rl.bench --env $(ENV)

test: .venv/installed lint
	.venv/bin/python -m pytest -n 2

lint: .venv/installed
	.venv/bin/ruff check
	.venv/bin/lint-imports --no-cache

.venv/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	.venv/bin/pip install --disable-pip-version-check -q -c constraints.txt "torch==$$(sed -n 's/^torch==//p' constraints.txt)"
	.venv/bin/pip install --disable-pip-version-check -q -c constraints.txt -e .[dev]
	touch $@
