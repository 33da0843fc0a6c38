# make demo: the toy model, from nothing to translated pictures.    make test: all tests.    make lint: ruff and mypy.
# make soak: kills.    make fuzz: damaged input.    make test-floor: the tests with the oldest versions that setup.cfg allows.
# Needs python3 >= 3.10 with venv, and git. Everything is installed into .venv.

PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
RUN    ?= runs/toy

# For the oldest versions: a Python that they have wheels for, and an environment each for all and for forks alone.
FLOOR_PYTHON ?= $(PYTHON)
FLOOR        ?= .venv-floor
FLOOR_FORKS  ?= .venv-floor-forks

.PHONY: install demo test test-floor browser soak fuzz lint clean

install: $(VENV)/.installed

$(VENV)/.installed: setup.cfg pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 10))' || \
		{ echo "$(PYTHON) must be Python 3.10 or newer with the venv module (Debian: apt install python3-venv)"; exit 1; }
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

# What the tests of the page need beside it (tests/test_web.py): Debian's Chromium, its driver, and the page's runtime.
browser: install
	command -v chromium || timeout 300 sh -c 'apt-get update && apt-get install -y --no-install-recommends chromium'
	timeout 300 $(BIN)/python -m pip install --disable-pip-version-check -c constraints.txt -e '.[browser]'
	test -d node_modules/onnxruntime-web || \
		timeout 300 npm install --no-save --no-audit --no-fund --ignore-scripts onnxruntime-web@1.30.0

# Python 3.10 to 3.12. What a fork and torch.hub need is tested with PyTorch 2.1 as well, where nothing else is installed.
test-floor: $(FLOOR)/.installed $(FLOOR_FORKS)/.installed
	OMP_NUM_THREADS=1 $(FLOOR)/bin/python -m pytest -n 2 $(ARGS)
	OMP_NUM_THREADS=1 $(FLOOR_FORKS)/bin/python -m pytest $(FORK_TESTS)

FORK_TESTS := $(patsubst %,tests/test_%.py,attention routes samplers dimensions forks fork_ids fork_guard fork_cli hub)

$(FLOOR)/.installed: setup.cfg constraints-floor.txt
	$(FLOOR_PYTHON) -m venv $(FLOOR)
	$(FLOOR)/bin/python -m pip install --disable-pip-version-check -c constraints-floor.txt -e '.[test]'
	@touch $@

# Without PyTorch's and timm's lines, all else at the floor.
$(FLOOR_FORKS)/.installed: setup.cfg constraints-floor.txt
	$(FLOOR_PYTHON) -m venv $(FLOOR_FORKS)
	grep -v torch constraints-floor.txt > $(FLOOR_FORKS)/constraints.txt
	$(FLOOR_FORKS)/bin/python -m pip install --disable-pip-version-check -c $(FLOOR_FORKS)/constraints.txt \
		torch==2.1.2 numpy click pydantic pyyaml pillow safetensors tqdm jinja2 pytest pytest-timeout
	$(FLOOR_FORKS)/bin/python -m pip install --disable-pip-version-check --no-deps -e .
	@touch $@

# A training is killed a hundred times, and at every file operation, and must end with the bytes of one that never was:
# docs/measured/soak.md.
soak: install
	OMP_NUM_THREADS=1 $(BIN)/python -m benchmarks.soak --kills 100
	OMP_NUM_THREADS=1 $(BIN)/python -m benchmarks.soak --operations --steps 3

# Damaged and hostile input: recipes, pictures, weights, archives, answers of servers, run folders. The seed is printed;
# ARGS="--seed 7" makes the same cases again.
fuzz: install
	OMP_NUM_THREADS=1 $(BIN)/python -m tests.fuzz --cases 50000 $(ARGS)

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
	rm -rf $(VENV) $(FLOOR) $(FLOOR_FORKS) build *.egg-info
