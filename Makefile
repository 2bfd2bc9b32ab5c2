# Two commands for a newcomer: `make demo` runs the main job, `make test` passes the tests.
PYTHON ?= $(shell command -v python3.11 || command -v python3)
BIN := .venv/bin
export OMP_NUM_THREADS ?= 1

.DEFAULT_GOAL := help
.PHONY: help setup demo test check integration bench-data bench-prune bench-distill bench-quantize bench-service faults clean

help: ## Print the targets
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | expand -t 14

setup: $(BIN)/.installed ## Make .venv with the pinned versions

$(BIN)/.installed: constraints.txt pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info[:2] != (3, 11) and "nightpress needs Python 3.11, got " + sys.version)'
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --upgrade 'pip>=25.1,<27'
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable . --group dev
	@touch $@

configs/demo/text/heldout.jsonl: configs/demo/write_text.py | $(BIN)/.installed
	$(BIN)/python configs/demo/write_text.py

demo: setup configs/demo/text/heldout.jsonl ## Run configs/quickstart.yaml from corpus to published artifacts
	$(BIN)/nightpress run configs/quickstart.yaml

test: setup configs/demo/text/heldout.jsonl ## Run all tests that this machine can run
	$(BIN)/python -m pytest -n auto --maxprocesses 4 --dist loadfile tests/unit tests/conformance tests/gpu
	$(BIN)/python -m pytest -n 2 --dist loadfile tests/integration tests/browser

integration: setup configs/demo/text/heldout.jsonl ## Run the tests against real Ray, Prefect, DeepSpeed and S3 only, the slow ones too
	$(BIN)/python -m pytest -m integration --slow

faults: setup ## Break everything that a night leans on; what came of it goes into docs/faults.md
	@mkdir -p .nightpress
	NIGHTPRESS_FAULTS=$(CURDIR)/.nightpress/faults.json $(BIN)/python -m pytest --slow tests/integration/faults
	$(BIN)/python -m tests.integration.faults.ledger .nightpress/faults.json

bench-data: setup configs/demo/text/heldout.jsonl ## Measure training data into docs/results.md; PARTS="dedup" for some
	$(BIN)/python -m tests.benchmarks.data $(PARTS) --write

bench-prune: setup configs/demo/text/heldout.jsonl ## Measure pruning into docs/results.md; PARTS="quality memory" for some
	$(BIN)/python -m tests.benchmarks.prune $(PARTS) --write

bench-distill: setup configs/demo/text/heldout.jsonl ## Measure distillation into docs/results.md; PARTS="loss_memory" for some
	$(BIN)/python -m tests.benchmarks.distill $(PARTS) --write

bench-quantize: setup configs/demo/text/heldout.jsonl ## Measure quantization into docs/results.md; PARTS="quality gptq_time" for some
	$(BIN)/python -m tests.benchmarks.quantize $(PARTS) --write

bench-service: setup configs/demo/text/heldout.jsonl ## Measure nights, transfers and plans into docs/results.md; PARTS="overhead" for some
	$(BIN)/python -m tests.benchmarks.service $(PARTS) --write

check: setup ## Format, lint, types, import layers, unit tests
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python -m pytest -q -n auto --maxprocesses 4 --dist loadfile tests/unit tests/conformance

clean: ## Remove the virtual environment, the state folder and the demo's text
	rm -rf .venv .nightpress configs/demo/text
