# Each target does its own set-up: the virtual environment .venv is made once, and made anew when setup.cfg changes.
PYTHON ?= python3
STAMP := .venv/installed
PIP_INSTALL := -m pip install --quiet --disable-pip-version-check

.PHONY: quickstart check test coverage test-lowest check-sweeps test-resume test-slurm test-ray test-upstream checkout-named docs benchmark benchmark-gpu clean

quickstart: $(STAMP)
	.venv/bin/domainfusion quickstart

# Lint, format and types; `.venv/bin/ruff check --fix` and `.venv/bin/ruff format` mend most of what it finds.
check: $(STAMP)
	.venv/bin/ruff check
	.venv/bin/ruff format --check
	.venv/bin/mypy

# Two processes, each with one thread and whole files of tests: TEST_PROCESSES=8 where there are more cores.
# COVERAGE=1 also prints the lines and branches of the package that no test runs. That takes about a tenth longer.
TEST_PROCESSES ?= 2
test: $(STAMP)
	OMP_NUM_THREADS=1 .venv/bin/python -m pytest -n $(TEST_PROCESSES) --dist loadfile \
		$(if $(COVERAGE),--cov --cov-report=term-missing:skip-covered)

coverage:
	$(MAKE) test COVERAGE=1

# The suite on the oldest versions that setup.cfg allows. They exist for Python 3.10 and 3.11: PYTHON=python3.11.
test-lowest: .venv-lowest/installed
	.venv-lowest/bin/python -m pytest

# Jobs that are killed at every kind of moment, then thirty that are killed twice where chance decides: half an hour.
# With DOMAINBED_DIR=<a checkout that is attached> in that host.
test-resume: $(STAMP)
	KILL_TESTS=1 .venv/bin/python -m pytest -s tests/resuming
	.venv/bin/python -m tests.resuming.kill_driver --runs 30

# A sweep on a real Slurm that preempts, ends and kills its jobs, and loses its node: twelve minutes. It needs root.
# Debian's packages are installed if they are missing; where they cannot be, the test says so and is skipped.
test-slurm: $(STAMP)
	@command -v slurmctld >/dev/null && command -v munged >/dev/null || apt-get install --yes slurm-wlm munge || true
	SLURM_TESTS=1 .venv/bin/python -m pytest -s tests/slurm

# A sweep on a Ray cluster of two nodes, processes of this machine, that is interrupted and loses a node: five minutes.
test-ray: .venv/installed-ray
	RAY_TESTS=1 .venv/bin/python -m pytest -s tests/ray_cluster

# Every file in sweeps/: known names, hparams in range, as many jobs as it states.
check-sweeps: $(STAMP)
	.venv/bin/domainfusion sweep --check sweeps/*.txt sweeps/digits/*.txt

# Inside DomainBed itself: make test-upstream DOMAINBED_DIR=<a checkout>; a copy of it is attached, never the checkout.
test-upstream: checkout-named .venv/installed-domainbed
	DOMAINBED_DIR="$(abspath $(DOMAINBED_DIR))" .venv/bin/python -m pytest -s tests/upstream

checkout-named:
	@test -d "$(DOMAINBED_DIR)/domainbed" || { echo "Name a checkout: make test-upstream DOMAINBED_DIR=../DomainBed"; exit 1; }

# The table of hparams in docs/, from the code; a test compares the two.
docs: $(STAMP)
	.venv/bin/python -m tests.docs.hparams_page

# R1 to R5, R7 and R8 beside their references: see benchmarks/README.md. Results go to benchmarks/results/.
benchmark: BENCHMARK := .venv/bin/python -m benchmarks --device cpu
benchmark: $(STAMP)
	$(BENCHMARK) --suite ld --model sd1 --output benchmarks/results/cpu-ld-sd1.json
	$(BENCHMARK) --suite ld --model pocket --output benchmarks/results/cpu-ld-pocket.json
	$(BENCHMARK) --suite candidates --model pocket --output benchmarks/results/cpu-candidates-pocket.json
	$(BENCHMARK) --suite step --model pocket --output benchmarks/results/cpu-step-pocket.json
	$(BENCHMARK) --suite levers --model pocket --output benchmarks/results/cpu-levers-pocket.json
	$(BENCHMARK) --suite sweep --model pocket --output benchmarks/results/cpu-sweep-pocket.json

# The same with R6 on one GPU, in half precision at full size; the naive step is slow and large, hence its few rounds.
benchmark-gpu: BENCHMARK := .venv/bin/python -m benchmarks --device cuda --model sd1
benchmark-gpu: $(STAMP)
	$(BENCHMARK) --suite ld --output benchmarks/results/cuda-ld-sd1.json
	$(BENCHMARK) --suite ld --dtype bfloat16 --output benchmarks/results/cuda-ld-sd1-bfloat16.json
	$(BENCHMARK) --suite candidates --output benchmarks/results/cuda-candidates-sd1.json
	$(BENCHMARK) --suite candidates --dtype bfloat16 --output benchmarks/results/cuda-candidates-sd1-bfloat16.json
	$(BENCHMARK) --suite candidates --dtype float32 --output benchmarks/results/cuda-candidates-sd1-float32.json
	$(BENCHMARK) --suite candidates --compile --output benchmarks/results/cuda-candidates-sd1-compiled.json
	$(BENCHMARK) --suite candidates --compile cuda_graphs --output benchmarks/results/cuda-candidates-sd1-graphs.json
	$(BENCHMARK) --suite step --repeats 3 --output benchmarks/results/cuda-step-sd1.json
	$(BENCHMARK) --suite levers --repeats 3 --output benchmarks/results/cuda-levers-sd1.json
	$(BENCHMARK) --suite sweep --output benchmarks/results/cuda-sweep-sd1.json

.venv/installed-domainbed: $(STAMP)
	.venv/bin/python $(PIP_INSTALL) --editable '.[dev,domainbed]'
	touch $@

.venv/installed-ray: $(STAMP)
	.venv/bin/python $(PIP_INSTALL) --editable '.[dev,ray]'
	touch $@

$(STAMP): setup.cfg pyproject.toml
	$(PYTHON) -m venv .venv
	.venv/bin/python $(PIP_INSTALL) --editable '.[dev]'
	touch $@

.venv-lowest/installed: setup.cfg tests/lower_bounds.py
	$(PYTHON) -m venv --clear .venv-lowest
	.venv-lowest/bin/python tests/lower_bounds.py > .venv-lowest/lowest.txt
	.venv-lowest/bin/python $(PIP_INSTALL) --requirement .venv-lowest/lowest.txt --editable .
	touch $@

clean:
	rm -rf .venv .venv-lowest build dist *.egg-info .pytest_cache .ruff_cache .mypy_cache .coverage* quickstart
	find domainbed_domainfusion tests -name __pycache__ -type d -prune -exec rm -rf {} +
