# On a machine with Python 3.11 or later: `make demo`, `make test` and `make bench`. Each sets up .venv first.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.PHONY: demo test check bench faults soak install constraints clean

demo: install  ## Run the whole way on a small synthetic corpus (about four minutes on two cores).
	$(BIN)/siamusic-fast demo

test: install  ## Run the tests.
	$(BIN)/pytest -n auto --maxprocesses 4 --dist loadfile

check: install  ## Check format, lint and types.
	scripts/check

bench: install  ## Measure this machine on data made for it (under ten minutes on two cores); each time into a new folder.
	$(BIN)/python -m benchmarks.run

FAULTS ?= benchmarks/here/faults.json

faults: install  ## Try every promise about faults at length (about 35 minutes on two cores); prints its plan first.
	$(BIN)/python -m tests.faults.run --out $(FAULTS)

soak: install  ## Load a million samples and look at memory, files and threads (about ten minutes on two cores).
	$(BIN)/python -m tests.faults.run --only soak --out $(FAULTS)

install: $(VENV)/.installed  ## Make .venv with everything in it.

$(VENV)/.installed: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	    echo "siamusic-fast needs Python 3.11 or later, and $(PYTHON) is $$($(PYTHON) --version): try make PYTHON=python3.12"; \
	    exit 1; }
	@echo "Installing into $(VENV) (torch and DALI: 6.5 GB) ..."
	@$(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt uv
	@$(BIN)/uv pip install --quiet --python $(BIN)/python --constraint constraints.txt \
	    --compile-bytecode --editable '.[dev]'
	@touch $@

constraints:  ## Pin the newest versions that pyproject.toml allows.
	$(BIN)/uv pip compile pyproject.toml --extra dev --universal --python-version 3.11 --upgrade \
	    --no-header --no-annotate --quiet --output-file constraints.txt

clean:  ## Remove .venv and what the demo made.
	rm -rf $(VENV) demo
