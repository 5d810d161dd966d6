# Two commands matter: `make figures` and `make test`. Both set themselves up first
# and do nothing twice.
PYTHON  ?= python3
PROFILE ?= mini
VENV    := .venv
BIN     := $(VENV)/bin
STAMP   := $(VENV)/.installed

.PHONY: figures test setup lab bench benchmark sweeps clean help

help:
	@echo "make figures   regenerate every figure and table of the notebooks (FRESH=1: from the photographs, PROFILE=paper)"
	@echo "make test      unit tests, then every notebook twice, compared by nbval"
	@echo "make lab       open the notebooks in JupyterLab"
	@echo "make benchmark all bundled scenes, with and without the contrastive terms (takes long)"
	@echo "make sweeps    the committed grids of experiments (data/sweeps), as CSV"
	@echo "make bench     speed and memory of the numerical core"
	@echo "make setup     only create .venv"
	@echo "make clean     remove run folders and executed notebooks (figures and tables stay)"

setup: $(STAMP)

# torch first, then sam2 without build isolation: its set-up imports torch, and an isolated
# build would download a second copy. SAM2_BUILD_CUDA=0: the extension is optional.
$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(0 if sys.version_info >= (3, 11) else "cclkit needs Python 3.11 or newer, found " + sys.version.split()[0] + "; run: make PYTHON=python3.11 ...")'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet -c constraints.txt setuptools wheel torch torchvision
	SAM2_BUILD_CUDA=0 $(BIN)/python -m pip install --quiet -c constraints.txt --no-build-isolation sam2
	$(BIN)/python -m pip install --quiet -c constraints.txt --no-build-isolation -e .
	@touch $(STAMP)

figures: $(STAMP)
	$(BIN)/cclkit figures --profile $(PROFILE) $(if $(FRESH),--fresh)

test: $(STAMP)
	$(BIN)/python -m pytest tests
	$(BIN)/cclkit figures --profile mini
	CCLKIT_QUIET=1 $(BIN)/python -m pytest --nbval --nbval-cell-timeout 600 results/mini/notebooks

lab: $(STAMP)
	$(BIN)/jupyter lab notebooks

bench: $(STAMP)
	$(BIN)/cclkit bench rasterize --json results/mini/tables/bench_rasterize.json
	$(BIN)/cclkit bench mask_nms --json results/mini/tables/bench_mask_nms.json
	$(BIN)/cclkit bench codebook --json results/mini/tables/bench_codebook.json
	$(BIN)/cclkit bench field --curves --json results/mini/tables/bench_field.json
	$(BIN)/cclkit bench field_size --json results/mini/tables/bench_field_size.json

benchmark: $(STAMP)
	$(BIN)/cclkit benchmark

sweeps: $(STAMP)
	$(BIN)/cclkit sweep data/sweeps/*.toml

clean:
	rm -rf results/*/runs results/*/notebooks
