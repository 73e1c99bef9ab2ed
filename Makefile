# `make setup` once; then every target runs from .venv. CI runs `make test`.
# A distribution's Python is built with its optimizations, a version manager's often without, and 1.5 times slower then
# (decision 0021): the system's where it is new enough, else the one in PATH. PYTHON=... is another one.
SUITS := -c 'import ensurepip, sys, venv; sys.exit(sys.version_info < (3, 11))' 2>/dev/null
PYTHON ?= $(shell /usr/bin/python3 $(SUITS) && echo /usr/bin/python3 || echo python3)
BIN := .venv/bin
READY := .venv/.ready
TESTS ?= tests
SECONDS ?= 300
PROGRAMS ?= 300
SEED ?=

.PHONY: setup check test sim integration crash restart damage brokers bursts generated mutations memory attacks bench bench-check demo docs clean help

help: ## this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | expand -t 14

setup: $(READY) ## .venv with the everfold command and Kafka's jars

$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "Everfold needs Python 3.11 or newer; try PYTHON=python3.11"; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || { echo "Python's venv module is missing: apt-get install python3-venv"; exit 1; }
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet -e '.[dev]' -c constraints.txt
	$(BIN)/everfold setup broker
	@touch $@

check: $(READY) ## ruff and mypy, strict
	$(BIN)/ruff check .
	$(BIN)/ruff format --check --quiet .
	$(BIN)/mypy

# Exit status 5 is "no tests": TESTS may name a suite that has only one of the two kinds.
test: check ## everything that CI runs
	$(BIN)/pytest $(TESTS) -m "not alone" -n 2 --dist worksteal || test $$? = 5
	$(BIN)/pytest $(TESTS) -m alone || test $$? = 5

sim: $(READY) ## the seeded simulator for SECONDS (300)
	EVERFOLD_SIM_SECONDS=$(SECONDS) $(BIN)/pytest tests/simulation --timeout 0 -s

integration: $(READY) ## real broker, real SDK workers
	$(BIN)/pytest tests/integration

crash: $(READY) ## kill -9 in full: 20 rounds of the servers, 3 of the broker, 3 of everything
	EVERFOLD_CRASH_ROUNDS=20,3,3 $(BIN)/pytest tests/crash -s

damage: $(READY) ## damaged logs, stores and records, in full
	EVERFOLD_DAMAGE=full $(BIN)/pytest tests/damage -s

brokers: $(READY) ## three real brokers in full: each of them dies, hangs for long and shortly, and two die
	EVERFOLD_BROKERS_FULL=1 $(BIN)/pytest tests/brokers -s

bursts: $(READY) ## up to 50,000 commands at once, on 1 and 4 shards, with and without kill -9
	EVERFOLD_BURSTS=full $(BIN)/pytest tests/bursts -s

restart: $(READY) ## kill -9 with 20,000 open workflows: seconds to a start that is acknowledged, and where they go
	EVERFOLD_RESTART_OPEN=20000 $(BIN)/pytest tests/crash/test_restart.py -s

generated: $(READY) ## PROGRAMS (300) random workflows through kills, and on a real Temporal server; SEED repeats
	EVERFOLD_GENERATED_PROGRAMS=$(PROGRAMS) EVERFOLD_GENERATED_SEED=$(SEED) $(BIN)/pytest tests/generated -s

mutations: $(READY) ## 100,000 calls with one field changed, 1,000 of them of SDKs, and 5,000 commands; SEED repeats
	EVERFOLD_MUTATIONS=99000,1000,5000 EVERFOLD_MUTATIONS_SEED=$(SEED) $(BIN)/pytest tests/mutations -s

memory: $(READY) ## memory in full: 5,000 open workflows, 20,000 one after the other
	EVERFOLD_MEMORY_SCALE=1 $(BIN)/pytest tests/integration/test_memory.py -s

attacks: $(READY) ## hostile clients in full: bombs, unfinished requests, unread answers, idle connections
	EVERFOLD_ATTACKS=full $(BIN)/pytest tests/attacks -s

bench: $(READY) ## Everfold beside a real Temporal dev server
	$(BIN)/python benchmarks/run.py

bench-check: $(READY) ## the same; fails unless every goal is reached
	$(BIN)/python benchmarks/run.py --check

demo: $(READY) ## one workflow: its result, its history, its Avro events read back from Kafka
	$(BIN)/python examples/demo.py

docs: $(READY) ## regenerate the generated pages
	$(BIN)/everfold docs docs

clean: ## remove everything that make made
	rm -rf .venv dist build .mypy_cache .ruff_cache .pytest_cache .hypothesis .cache
