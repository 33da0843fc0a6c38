# make demo: the toy model, from nothing to translated pictures.    make test: all tests.    make lint: ruff and mypy.
# make soak: kills.
# Needs python3 >= 3.11 with venv, and git. Everything is installed into .venv.

PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
RUN    ?= runs/toy

.PHONY: install demo test soak lint clean

install: $(VENV)/.installed

$(VENV)/.installed: setup.cfg pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "$(PYTHON) must be Python 3.11 or newer with the venv module (Debian: apt install python3-venv)"; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --disable-pip-version-check -c constraints.txt -e '.[test]'
	@touch $@

demo: install
	$(BIN)/qsattn build toy --run $(RUN) --overwrite
	$(BIN)/qsattn fit $(RUN)
	$(BIN)/qsattn data toy --root $(RUN)/toy-images --split testA
	$(BIN)/qsattn translate $(RUN)/toy-images/testA -m $(RUN) -o $(RUN)/translated --overwrite
	@$(BIN)/qsattn fit $(RUN)

# Two processes of one thread each, one a core: most tests are too small to share.
test: install
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 $(ARGS)

# A training is killed a hundred times and must end with the bytes of one that never was: docs/measured/soak.md.
soak: install
	OMP_NUM_THREADS=1 $(BIN)/python -m benchmarks.soak --kills 100

# mypy looks at a copy laid out as it installs: registry/ and cli/ below the package.
lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	rm -rf $(VENV)/typed
	mkdir -p $(VENV)/typed
	cp -r qsattn_plugin $(VENV)/typed
	cp -r registry cli $(VENV)/typed/qsattn_plugin
	cd $(VENV)/typed && ../bin/mypy --config-file ../../pyproject.toml -p qsattn_plugin

clean:
	rm -rf $(VENV) build *.egg-info
