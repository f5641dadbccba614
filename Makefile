# Each target does its own set-up: the virtual environment .venv is made once, and made anew when setup.cfg changes.
PYTHON ?= python3
STAMP := .venv/installed

.PHONY: quickstart test check-sweeps test-upstream benchmark benchmark-gpu clean

quickstart: $(STAMP)
	.venv/bin/domainfusion quickstart

test: $(STAMP)
	.venv/bin/python -m pytest

# Every file in sweeps/: known names, hparams in range, as many jobs as it states.
check-sweeps: $(STAMP)
	.venv/bin/domainfusion sweep --check sweeps/*.txt

# Inside DomainBed itself: make test-upstream DOMAINBED_DIR=<a checkout>; a copy of it is attached, never the checkout.
test-upstream: .venv/installed-domainbed
	DOMAINBED_DIR="$(abspath $(DOMAINBED_DIR))" .venv/bin/python -m pytest -s tests/upstream

# R1 to R5 and R7 beside their references: see benchmarks/README.md. Results go to benchmarks/results/.
benchmark: BENCHMARK := .venv/bin/python -m benchmarks --device cpu
benchmark: $(STAMP)
	$(BENCHMARK) --suite ld --model sd1 --output benchmarks/results/cpu-ld-sd1.json
	$(BENCHMARK) --suite ld --model pocket --output benchmarks/results/cpu-ld-pocket.json
	$(BENCHMARK) --suite candidates --model pocket --output benchmarks/results/cpu-candidates-pocket.json
	$(BENCHMARK) --suite step --model pocket --output benchmarks/results/cpu-step-pocket.json
	$(BENCHMARK) --suite sweep --model pocket --output benchmarks/results/cpu-sweep-pocket.json

# The same with R6 on one GPU, in half precision at full size; the naive step is slow and large, hence its few rounds.
benchmark-gpu: BENCHMARK := .venv/bin/python -m benchmarks --device cuda --model sd1
benchmark-gpu: $(STAMP)
	$(BENCHMARK) --suite ld --output benchmarks/results/cuda-ld-sd1.json
	$(BENCHMARK) --suite ld --dtype bfloat16 --output benchmarks/results/cuda-ld-sd1-bfloat16.json
	$(BENCHMARK) --suite candidates --output benchmarks/results/cuda-candidates-sd1.json
	$(BENCHMARK) --suite candidates --compile --output benchmarks/results/cuda-candidates-sd1-compiled.json
	$(BENCHMARK) --suite candidates --compile cuda_graphs --output benchmarks/results/cuda-candidates-sd1-graphs.json
	$(BENCHMARK) --suite step --repeats 3 --output benchmarks/results/cuda-step-sd1.json
	$(BENCHMARK) --suite sweep --output benchmarks/results/cuda-sweep-sd1.json

.venv/installed-domainbed: $(STAMP)
	.venv/bin/python -m pip install --quiet --disable-pip-version-check --editable '.[dev,domainbed]'
	touch $@

$(STAMP): setup.cfg pyproject.toml
	$(PYTHON) -m venv .venv
	.venv/bin/python -m pip install --quiet --disable-pip-version-check --editable '.[dev]'
	touch $@

clean:
	rm -rf .venv build dist *.egg-info .pytest_cache quickstart
	find domainbed_domainfusion tests -name __pycache__ -type d -prune -exec rm -rf {} +
