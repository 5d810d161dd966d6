# Two commands matter: `make figures` and `make test`. Both set themselves up first
# and do nothing twice.
PYTHON  ?= python3
PROFILE ?= mini
VENV    := .venv
BIN     := $(VENV)/bin
STAMP   := $(VENV)/.installed
BOOK    := $(VENV)/.installed-book
# idle threads sleep, but not at once: see cclkit/machine.py
export OMP_WAIT_POLICY ?= PASSIVE
export GOMP_SPINCOUNT ?= 30000

.PHONY: figures test setup lab book bench benchmark sweeps fuzz clean help

help:
	@echo "make figures   the runs of a profile, then every figure and table (FRESH=1: from the photographs, PROFILE=paper)"
	@echo "make test      formatting, unit tests, then every notebook twice, compared by nbval"
	@echo "make lab       open the notebooks in JupyterLab"
	@echo "make book      the executed notebooks as a static site in build/book (opens without a network)"
	@echo "make benchmark the ablation over all bundled scenes, and what CCL is compared with (about an hour)"
	@echo "make sweeps    the committed grids of experiments (data/sweeps), as CSV"
	@echo "make fuzz      25,000 damaged files, 32 killed runs, 32 full disks (make test has a short form)"
	@echo "make bench     speed and memory of the numerical core"
	@echo "make setup     only create .venv (LOCKED=1: from .ci/lock.txt, hash by hash)"
	@echo "make clean     remove run folders and executed notebooks (figures and tables stay)"

setup: $(STAMP)

# torch first, then sam2 without build isolation: its set-up imports torch, and an isolated
# build would download a second copy. SAM2_BUILD_CUDA=0: the extension is optional.
# LOCKED=1 (CI) installs the very files whose SHA-256 .ci/lock*.txt list, and nothing else; Linux x86-64, CPython 3.11.
$(STAMP): pyproject.toml constraints.txt $(if $(LOCKED),.ci/lock.txt .ci/lock-sdist.txt)
	@$(PYTHON) -c 'import sys; sys.exit(0 if sys.version_info >= (3, 11) else "cclkit needs Python 3.11 or newer, found " + sys.version.split()[0] + "; run: make PYTHON=python3.11 ...")'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
ifdef LOCKED
	@$(BIN)/python -c 'import platform, sys; here = platform.system(), platform.machine(), sys.version_info[:2]; sys.exit(0 if here == ("Linux", "x86_64", (3, 11)) else f"the lock is for Linux x86-64 and Python 3.11, this is {here}; leave out LOCKED=1")'
	$(BIN)/python -m pip install --quiet --require-hashes --no-deps --only-binary :all: -r .ci/lock.txt
	SAM2_BUILD_CUDA=0 $(BIN)/python -m pip install --quiet --require-hashes --no-deps --no-build-isolation -r .ci/lock-sdist.txt
	$(BIN)/python -m pip install --quiet --no-deps --no-build-isolation -e .
	$(BIN)/python -m pip check
else
	$(BIN)/python -m pip install --quiet -c constraints.txt setuptools torch torchvision
	SAM2_BUILD_CUDA=0 $(BIN)/python -m pip install --quiet -c constraints.txt --no-build-isolation sam2
	$(BIN)/python -m pip install --quiet -c constraints.txt --no-build-isolation -e '.[dev]'
endif
	@touch $(STAMP)

figures: $(STAMP)
	$(if $(FRESH),rm -rf results/$(PROFILE)/runs results/$(PROFILE)/notebooks)
	$(BIN)/python -m snakemake figures --workflow-profile workflow/profiles/default --config profile=$(PROFILE)

test: $(STAMP)
	$(BIN)/ruff format --check --quiet . && $(BIN)/ruff check --quiet .
	$(BIN)/python -m pytest tests
	CCLKIT_OFFLINE=1 $(BIN)/cclkit figures --profile mini
	CCLKIT_OFFLINE=1 CCLKIT_QUIET=1 $(BIN)/python -m pytest -p lab.site.nbval_guard --nbval --nbval-cell-timeout 600 results/mini/notebooks

lab: $(STAMP)
	$(BIN)/jupyter lab notebooks

$(BOOK): $(STAMP)
	$(BIN)/python -m pip install --quiet -c constraints.txt --no-build-isolation -e '.[book]'
	@touch $(BOOK)

book: figures $(BOOK)
	$(BIN)/python -m lab book --profile $(PROFILE)

bench: $(STAMP)
	$(BIN)/python -m lab bench rasterize --growing --json results/mini/tables/bench_rasterize.json
	$(BIN)/python -m lab bench mask_nms --json results/mini/tables/bench_mask_nms.json
	$(BIN)/python -m lab bench codebook --json results/mini/tables/bench_codebook.json
	$(BIN)/python -m lab bench field --curves --json results/mini/tables/bench_field.json
	$(BIN)/python -m lab bench field_size --json results/mini/tables/bench_field_size.json
	$(BIN)/python -m lab bench modes --json results/mini/tables/bench_modes.json
	$(BIN)/python -m lab bench propagation --json results/mini/tables/bench_propagation.json
	$(BIN)/python -m lab bench query --json results/mini/tables/bench_query.json
	$(BIN)/python -m lab bench widgets --json results/mini/tables/bench_widgets.json

benchmark: $(STAMP)
	$(BIN)/python -m lab benchmark
	$(BIN)/python -m lab compare

fuzz: $(STAMP)
	$(BIN)/python -m tests.fuzz --full
	$(BIN)/python -m tests.crash --full

sweeps: $(STAMP)
	$(BIN)/python -m lab sweep data/sweeps/*.toml

clean:
	rm -rf results/*/runs results/*/notebooks
