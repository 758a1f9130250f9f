# The README's commands. Everything that they need goes into $(VENV).
PYTHON ?= python3
VENV ?= .venv
RUN := $(VENV)/bin/python

.PHONY: help demo test check bench clean

help:
	@echo "make demo   train a small real run on this machine, to a test accuracy"
	@echo "make test   linters, type checker and test suite"
	@echo "make bench  timings of the data loader, of training steps and of the probe"
	@echo "make clean  remove the environment and caches; outputs/ stays"

# The stamp is written last: an environment whose installation was cut short is installed again.
$(VENV)/.ready: pyproject.toml
	@$(PYTHON) -c 'import sys; v = sys.version_info[:2]; sys.exit(None if (3, 10) <= v < (3, 14) else f"sppbench needs Python 3.10 to 3.13, $(PYTHON) is {v[0]}.{v[1]}: make PYTHON=python3.12 ...")'
	$(PYTHON) -m venv $(VENV)
	$(RUN) -m pip install --quiet --disable-pip-version-check --editable ".[dev]"
	@touch $@

demo: $(VENV)/.ready
	$(RUN) -m sppbench.train model=sn_efficientnet_mp optimizer.lr=0.001 data=digits trainer.max_epochs=5 \
		output_dir=outputs/demo overwrite=true

check: $(VENV)/.ready
	$(RUN) -m ruff check .
	$(RUN) -m ruff format --check .
	$(RUN) -m mypy

test: check
	$(RUN) -m pytest -n 2

bench: $(VENV)/.ready
	$(RUN) benchmarks/loader.py
	$(RUN) benchmarks/training.py
	$(RUN) benchmarks/spp_overhead.py
	$(RUN) benchmarks/spp_overhead.py --memory

clean:
	rm -rf $(VENV) .mypy_cache .pytest_cache .ruff_cache build dist
