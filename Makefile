# Each target does its own set-up: the virtual environment .venv is made once, and made anew when setup.cfg changes.
PYTHON ?= python3
STAMP := .venv/installed

.PHONY: quickstart test check-sweeps test-upstream clean

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
