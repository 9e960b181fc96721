# For a fresh clone: `make demo`, `make test`, `make docs`. Each makes .venv on first use.

PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
EXAMPLES := src/rinalmo/assets/examples

.PHONY: demo test test-all test-avx2 test-no-onednn lint types fast slow docs clean

demo: $(VENV)/installed
	@$(BIN)/rinalmo fill-mask $(EXAMPLES)/model_card_masks.fa
	@$(BIN)/rinalmo embed $(EXAMPLES)/well_known_rnas.fa -o $(VENV)/well_known_rnas.npz
	@$(BIN)/python examples/nearest_neighbours.py $(VENV)/well_known_rnas.npz

# What a newcomer runs: lint, types and every fast test, in about five minutes on two cores. Side by side: the type checker
# has one core, so the tests need not wait for it.
test: $(VENV)/installed-dev
	@$(MAKE) --no-print-directory -j2 lint types fast

# Everything on this processor.
test-all: $(VENV)/installed-dev
	@$(MAKE) --no-print-directory -j2 lint types fast
	@$(MAKE) --no-print-directory slow

lint: $(VENV)/installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports

types: $(VENV)/installed-dev
	$(BIN)/mypy

# A file to a worker: what its tests share, a server or a Ray, is started once.
PYTEST := $(BIN)/pytest -n 2 --dist loadfile

fast: $(VENV)/installed-dev
	$(PYTEST) -m "not slow" --durations=15

slow: $(VENV)/installed-dev
	$(PYTEST) -m slow --durations=15

# Other processors: the tests of all that computes, on one without bf16 (as most with AVX2 only), and with a torch that has
# no oneDNN operators (as on every Mac).
COMPUTING := tests/model tests/engine tests/inference tests/tasks tests/hf tests/cli

test-avx2: $(VENV)/installed-dev
	RINALMO_CPU=fp32 ATEN_CPU_CAPABILITY=avx2 ONEDNN_MAX_CPU_ISA=AVX2 $(PYTEST) -m "not slow" $(COMPUTING)

test-no-onednn: $(VENV)/installed-dev
	PYTHONPATH=$(CURDIR)/tests/emulation/no_onednn $(PYTEST) -m "not slow" $(COMPUTING)

# The documentation into site/; a broken link is an error. A test does the same.
docs: $(VENV)/installed-dev
	$(BIN)/zensical build --strict --clean

# The constraints pin torch: without them pip would fetch a CUDA build of several gigabytes. Nothing is compiled at once,
# a minute's work: Python does it when a module is first imported, and most never are.
$(VENV)/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-compile -c constraints.txt -e .
	@touch $@

$(VENV)/installed-dev: $(VENV)/installed
	$(BIN)/python -m pip install --quiet --disable-pip-version-check "pip>=25.1"
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-compile -c constraints.txt -e ".[h5,h5ad,data,plots,draw,tensorboard,wandb,trackio,fold,lora,onnx,ray,vcf,web]" --group dev
	@touch $@

clean:
	rm -rf $(VENV) site .cache .mypy_cache .ruff_cache
