# Everything runs on one shared virtual environment, made when it is missing.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.PHONY: run chat test chaos reloads deploys hostile wires soak lint types bench bench-full bench-peers clean

run: $(STAMP)  ## serve the demo: http://127.0.0.1:8000/
	$(BIN)/hub serve --config config/demo.toml

chat: $(STAMP)  ## serve the chat: http://127.0.0.1:8000/
	$(BIN)/hub serve --config config/chat.toml

test: $(STAMP)  ## all tests, in parallel
	$(BIN)/pytest

chaos: $(STAMP)  ## every fault under load, with figures, about 90 minutes; one of them: make chaos ONLY='"worker kill"'
	$(BIN)/python -m tests.chaos $(if $(ONLY),--only $(ONLY)) $(if $(ROUNDS),--rounds $(ROUNDS)) --save

reloads: $(STAMP)  ## settings that change under load, with figures, about three minutes
	$(BIN)/python -m tests.chaos.reloads --save

deploys: $(STAMP)  ## twenty deploys under load, and a stop with 10,000 clients, with figures, 10 minutes
	$(BIN)/python -m tests.chaos.deploys $(if $(ROUNDS),--rounds $(ROUNDS)) --save
	$(BIN)/python -m tests.chaos.goodbyes --save

hostile: $(STAMP)  ## what each attack costs clients who do nothing wrong, with figures, 20 minutes; two CPUs
	$(BIN)/python -m tests.hostile $(if $(ONLY),--only $(ONLY)) $(if $(ROUNDS),--rounds $(ROUNDS)) --save

wires: $(STAMP)  ## 1,000 Socket.IO clients on four workers, a connection for each request, with figures, a few minutes
	$(BIN)/python -m tests.wires $(if $(ONLY),--only $(ONLY)) --save

soak: $(STAMP)  ## an hour of everything at once: what grows, stays behind or gets lost; shorter: make soak MINUTES=10
	$(BIN)/python -m tests.soak $(if $(MINUTES),--minutes $(MINUTES)) --save

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(STAMP)
	$(BIN)/mypy

bench: $(STAMP)  ## the short set, under 20 minutes; peers that are not installed are left out; bench/README.md
	$(BIN)/pip install --quiet --disable-pip-version-check --editable '.[bench]'
	$(BIN)/python bench/suite.py

bench-full: $(STAMP)  ## all sizes and more rounds
	$(BIN)/pip install --quiet --disable-pip-version-check --editable '.[bench]'
	$(BIN)/python bench/suite.py --full

bench-peers: $(STAMP)  ## what the benches compare with; needs node and npm
	$(BIN)/pip install --quiet --disable-pip-version-check --editable '.[bench,peers]'
	npm install --prefix bench/peers --no-audit --no-fund --no-package-lock

$(STAMP): setup.cfg setup.py
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check --editable '.[test]'
	touch $@

clean:  ## remove the virtual environment and caches
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache *.egg-info
