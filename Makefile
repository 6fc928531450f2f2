ENV ?= halfcheetah
PYTHON ?= python3
export OMP_NUM_THREADS = 1

.PHONY: bench test witness lint

bench: .venv/installed
	.venv/bin/python -m lowrank_rl.rl.bench --env $(ENV)

test: .venv/installed lint
	.venv/bin/python -m pytest -n 2

# BCQ and CQL against d3rlpy's, and the environments under the oldest Gymnasium that we support, which d3rlpy pins
witness: .venv-witness/installed
	.venv-witness/bin/python -m pytest tests/rl/policies/test_d3rlpy.py tests/rl/policies/test_d3rlpy_continuous.py tests/rl/envs tests/rl/test_simulator*.py

lint: .venv/installed
	.venv/bin/ruff check
	.venv/bin/lint-imports --no-cache

.venv/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	.venv/bin/pip install --disable-pip-version-check -q -c constraints.txt "torch==$$(sed -n 's/^torch==//p' constraints.txt)"
	.venv/bin/pip install --disable-pip-version-check -q -c constraints.txt -e .[dev]
	touch $@

# shares the packages of .venv; what is installed here hides theirs
.venv-witness/installed: .venv/installed witness.txt
	rm -rf .venv-witness
	.venv/bin/python -m venv .venv-witness
	.venv/bin/python -c "import sysconfig; print('import site; site.addsitedir(' + repr(sysconfig.get_path('purelib')) + ')')" \
		> "$$(.venv-witness/bin/python -c "import sysconfig; print(sysconfig.get_path('purelib'))")/shared.pth"
	.venv-witness/bin/python -m pip install --disable-pip-version-check -q --no-deps --ignore-installed -r witness.txt
	.venv-witness/bin/python -c "import gymnasium, d3rlpy; assert gymnasium.__version__ == '1.0.0', gymnasium.__file__"
	touch $@
