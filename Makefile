# The README's commands. Everything that they need goes into $(VENV).
PYTHON ?= python3
VENV ?= .venv
RUN := $(VENV)/bin/python

.PHONY: help demo table1 table3 smoke figures lab keep report notebooks test check launchers bench docs dist clean

help:
	@echo "make demo       train a small real run on this machine, to a test accuracy and figures on a page"
	@echo "make table1     all 60 runs of Table 1 on CIFAR-100, then the table; continues where it was stopped"
	@echo "make table3     the same for the 60 small convolutional nets of the thesis' Table 3"
	@echo "make smoke      the same with narrow nets on digits, in two minutes"
	@echo "make figures    all runs behind the study's figures on CIFAR-100, then the figures, into results/figures"
	@echo "make lab        run what the study's tables and claims still need, at the lowest priority; what is in results/ is not run again"
	@echo "make keep       bring what has finished into results/, in compact form, with the tables, figures and numbers made from it"
	@echo "make report     one HTML page about everything in outputs/: verdicts, Table 1, figures, runs"
	@echo "make notebooks  the notebooks in examples/notebooks, from the scripts in examples"
	@echo "make test       linters, type checker, documentation and test suite"
	@echo "make docs       the documentation as a site, into build/docs, with warnings as errors"
	@echo "make launchers  the smoke sweep with the launchers of joblib, Ray and Slurm, each in its own environment"
	@echo "make bench      all timings, into docs/benchmarks, in up to half an hour; DATA=path/to/cifar100 for real images"
	@echo "make dist       the wheel and the source distribution, into dist/, checked as the package index does"
	@echo "make clean      remove the environment and caches; outputs/ stays"
	@echo
	@echo "ARGS=... is passed on to the runs, as in: make table1 ARGS='data.root=path/to/cifar100 seed=868'"
	@echo "JOBS=4 runs four at a time, on one machine or GPU: make table1 JOBS=4"

PIP := $(RUN) -m pip install --disable-pip-version-check

# The stamp is written last: an environment whose installation was cut short is installed again.
$(VENV)/.ready: pyproject.toml
	@$(PYTHON) -c 'import sys; v = sys.version_info[:2]; sys.exit(None if (3, 10) <= v <= (3, 14) else f"sppbench needs Python 3.10 to 3.14, $(PYTHON) is {v[0]}.{v[1]}: make PYTHON=python3.12 ...")'
	@echo "sppbench: installing everything into $(VENV), once: PyTorch, the benchmark and the tools of its tests."
	@echo "sppbench: on Linux this downloads 3.3 GB and takes 6.6 GB, 5.3 of it PyTorch with its CUDA libraries; a few minutes."
	$(PYTHON) -m venv $(VENV)
	$(PIP) --editable ".[dev]"
	@touch $@
	@echo "sppbench: installed."

demo: $(VENV)/.ready
	@echo "sppbench: training a normalizer-free EfficientNet for five epochs on small images of digits, in a minute or two"
	$(RUN) -m sppbench.train model=sn_efficientnet_mp optimizer.lr=0.001 data=digits trainer.max_epochs=5 \
		output_dir=outputs/demo overwrite=true
	@$(RUN) -m sppbench report outputs/demo --output outputs/demo/report.html
	@echo "How signals traveled through the net after its last epoch: outputs/demo/spp_epoch=4.png"
	@echo "All of it on one page, for a browser: outputs/demo/report.html"

# The command of a sweep, of several runs at once with JOBS.
SWEEP := $(RUN) -m sppbench.train -m $(if $(JOBS),hydra/launcher=joblib hydra.launcher.n_jobs=$(JOBS))
LAUNCHER := $(if $(JOBS),$(VENV)/.joblib)

$(VENV)/.joblib: $(VENV)/.ready
	@echo "sppbench: installing the launcher for several runs at once (joblib, 1 MB)"
	$(PIP) --editable ".[joblib]"
	@touch $@

# The table is made from the finished runs, even where cells have failed; the exit status covers both.
table1 table3 smoke: $(VENV)/.ready $(LAUNCHER)
	$(SWEEP) sweeps=$@ $(ARGS); status=$$?; \
	$(RUN) -m sppbench table outputs/$@ --output outputs/$@/table $(if $(findstring logger=,$(ARGS)),,--wandb) && exit $$status

# Drawn from the finished runs, even where cells have failed.
figures: $(VENV)/.ready $(LAUNCHER)
	$(SWEEP) sweeps=figures $(ARGS); status=$$?; \
	$(RUN) -m sppbench inspect outputs/figures && \
	$(RUN) -m sppbench figures outputs/figures --output results/figures && exit $$status

# Two processes of one thread each: on two cores faster than one process of two threads, and they give way to whatever else runs.
lab: $(VENV)/.ready $(VENV)/.joblib
	OMP_NUM_THREADS=1 nice -n 19 $(RUN) -m sppbench train -m hydra/launcher=joblib hydra.launcher.n_jobs=$(or $(JOBS),2) \
		sweeps=lab $(ARGS)

# A run that is unfinished or damaged is named and left where it is. Figures are drawn from the kept runs.
keep: $(VENV)/.ready
	@for sweep in table1 table3 figures claims nf open_track; do \
		if [ -d outputs/$$sweep ]; then \
			$(RUN) -m sppbench inspect outputs/$$sweep; \
			$(RUN) -m sppbench keep outputs/$$sweep --output results/$$sweep; \
		fi; \
	done
	@for sweep in table1 table3; do \
		if [ -d results/$$sweep ]; then \
			$(RUN) -m sppbench table results/$$sweep --output results/$$sweep >/dev/null || exit; \
		fi; \
	done
	$(RUN) -m sppbench figures results/figures --output results/figures >/dev/null
	$(RUN) results/refresh.py
	$(RUN) -m sppbench claims results

report: $(VENV)/.ready
	$(RUN) -m sppbench report outputs --output outputs/report.html

notebooks: $(VENV)/.ready
	$(RUN) docs/articles.py --notebooks

SITE := $(RUN) -m sphinx --fail-on-warning --keep-going --nitpicky --builder html docs build/docs

check: $(VENV)/.ready
	@echo "sppbench: linters and type checker, half a minute"
	$(RUN) -m ruff check .
	$(RUN) -m ruff format --check .
	$(RUN) -m mypy
	@echo "sppbench: the documentation, with every warning an error, half a minute"
	$(SITE) --quiet

test: check
	@echo "sppbench: the test suite, five minutes on two cores"
	$(RUN) -m pytest -n 2 --dist worksteal

docs: $(VENV)/.ready
	$(SITE)
	@echo "The site: build/docs/index.html"

launchers: $(VENV)/.ready
	VENV=$(VENV) tests/launchers.sh

# Our times are compared with those of timm and TorchLens. DATA=path/to/cifar100; without it images are random.
bench: $(VENV)/.ready
	$(PIP) timm torchlens
	$(RUN) benchmarks/all.py $(if $(DATA),--root "$(DATA)")

dist: $(VENV)/.ready
	rm -rf dist
	$(RUN) -m build --no-isolation
	$(RUN) -m twine check --strict dist/*

clean:
	rm -rf $(VENV) .mypy_cache .pytest_cache .ruff_cache build dist
