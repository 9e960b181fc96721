# For a fresh clone: `make demo`, `make test`, `make docs`. Each makes .venv on first use.

PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
EXAMPLES := src/rinalmo/assets/examples

.PHONY: demo test lint types pytest docs clean

demo: $(VENV)/installed
	@$(BIN)/rinalmo fill-mask $(EXAMPLES)/model_card_masks.fa
	@$(BIN)/rinalmo embed $(EXAMPLES)/well_known_rnas.fa -o $(VENV)/well_known_rnas.npz
	@$(BIN)/python examples/nearest_neighbours.py $(VENV)/well_known_rnas.npz

# Side by side: the type checker has one core, so the tests need not wait for it.
test: $(VENV)/installed-dev
	@$(MAKE) --no-print-directory -j2 lint types pytest

lint: $(VENV)/installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(VENV)/installed-dev
	$(BIN)/mypy

# A file to a worker: what its tests share, a server or a Ray, is started once.
pytest: $(VENV)/installed-dev
	$(BIN)/pytest -n 2 --dist loadfile --durations=25

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
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-compile -c constraints.txt -e ".[h5,h5ad,data,plots,draw,tensorboard,fold,lora,ray,web]" --group dev
	@touch $@

clean:
	rm -rf $(VENV) site .cache .mypy_cache .ruff_cache
