# `make test` and `make demo` do everything, from set-up on. `make help` lists the rest.
.DEFAULT_GOAL := help
.PHONY: help setup build install uninstall test test-engines lint demo clean-demo reference bench bench-gpu bench-instructions bench-peers bench-shard bench-start bench-step
SHELL := /bin/bash

# Set-up alone sees a libtorch that is given here; cargo is told through .cargo/config.toml.
unexport LIBTORCH LIBTORCH_USE_PYTORCH
SETUP = LIBTORCH='$(LIBTORCH)' LIBTORCH_USE_PYTORCH='$(LIBTORCH_USE_PYTORCH)' scripts/setup.sh
SEED = scripts/deps-cache.sh seed
SAVE = scripts/deps-cache.sh save
QF_PEERS = $(or $(QF_CACHE),$(or $(XDG_CACHE_HOME),$(HOME)/.cache)/qformer)/peers
QF_STEP = $(or $(QF_CACHE),$(or $(XDG_CACHE_HOME),$(HOME)/.cache)/qformer)/bench-step
QF_ENGINES = $(or $(QF_CACHE),$(or $(XDG_CACHE_HOME),$(HOME)/.cache)/qformer)/engines
QF_SKIPPED = $(CURDIR)/target/skipped-tests.txt
PREFIX = $(HOME)/.local
ROUNDS = 3
SECONDS_EACH = 5

help: ## List the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-19s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)
	@echo
	@echo "  Settings (make TARGET NAME=value):"
	@echo "    PREFIX=folder           install: where bin, share and libexec are [~/.local]"
	@echo "    PAIRS=folder            demo: your own captioned images"
	@echo "    LIBTORCH=folder         use this libtorch 2.11.0 instead of fetching one"
	@echo "    LIBTORCH_USE_PYTORCH=1  use the PyTorch 2.11.0 of the python3 on the PATH"
	@echo "    QF_CACHE=folder         downloads and compiled dependencies (~/.cache/qformer)"
	@echo "    QF_CUDA=0|1             fetch libtorch without or with CUDA"
	@echo "    QF_NCCL=1               fetch NCCL's headers: a CPU set-up builds for several GPUs, too"
	@echo "    ROUNDS=3 SECONDS_EACH=5 bench-peers: how often and how long each loader runs"
	@echo "    QF_VERBOSE=1            show what pip, apt and cargo print"
	@echo "    QF_NO_APT=1             name missing system packages, install none"

setup: ## Check the machine, fetch libtorch, write .cargo/config.toml
	@$(SETUP)

build: ## Set-up, then qfdata and qftrain in target/release
	@$(SETUP)
	@$(SEED) release
	@scripts/build.sh
	@$(SAVE) release

install: build ## Build, then both programs, manual pages and completions into PREFIX (~/.local)
	@scripts/install.sh '$(PREFIX)'

uninstall: ## Remove them from PREFIX
	@scripts/install.sh --uninstall '$(PREFIX)'

test: ## Set-up, then all tests; what was skipped is listed at the end
	@$(SETUP) --with-test-venv
	@$(SEED) debug
	cargo test --locked --workspace --no-run
	@$(SAVE) debug
	@rm -f '$(QF_SKIPPED)'
	QF_SKIPPED='$(QF_SKIPPED)' cargo test --locked --workspace; status=$$?; \
		scripts/list-skipped.sh '$(QF_SKIPPED)'; exit $$status

test-engines: build ## Build, then the examples of Ray, Dask and Spark, in an environment of their own
	@scripts/engines/test.sh target/release/qfdata '$(QF_ENGINES)'

lint: ## Set-up, then formatting, clippy and rustdoc, with warnings as errors
	@$(SETUP)
	@$(SEED) debug
	cargo fmt --all --check
	cargo clippy --locked --workspace --all-targets -- -D warnings
	RUSTDOCFLAGS='-D warnings' cargo doc --locked --workspace --no-deps

demo: export DEMO_STARTED := $(shell date +%s)
demo: build ## Set-up, then the whole job: render, shard, train, evaluate (PAIRS=folder: yours)
	@scripts/demo.sh

bench: ## Set-up, then rates of every stage of the loader (criterion), and the fraction of the lower bound that it reaches
	@$(SETUP)
	@$(SEED) release
	cargo bench --locked -p qf-pipeline --bench stages
	cargo bench --locked -p qf-pipeline --bench floor

bench-instructions: ## Set-up, then instructions per image of every stage (valgrind), against the last ones
	@$(SETUP)
	@$(SEED) release
	@bench/instructions.sh

bench-peers: build ## Build, then qfdata beside other loaders (PAIRS=folder: your photographs)
	@bench/peers/run.py --qfdata target/release/qfdata --cache '$(QF_PEERS)' \
		$(if $(PAIRS),--pairs '$(PAIRS)') --rounds $(ROUNDS) --seconds $(SECONDS_EACH)

bench-shard: build ## Build, then `qfdata shard` beside img2dataset and OpenCV (PAIRS=folder: photographs with captions; LARGE=folder: every twentieth)
	@bench/shard/run.py --qfdata target/release/qfdata --pairs '$(or $(PAIRS),$(error bench-shard: give a folder of photographs with captions: PAIRS=folder))' $(if $(LARGE),--large '$(LARGE)') --rounds $(ROUNDS)

bench-gpu: build ## Build, then ViT-g on a GPU beside PyTorch: images/s, idle time, resume (SHARDS=...: yours)
	@bench/gpu.sh target/release/qfdata target/release/qftrain $(SHARDS)

bench-start: build ## Build, then the time to the first batch of 10,000 shards, and to resume
	@bench/start.sh target/release/qfdata

bench-step: build ## Build, then our training step beside the reference's in PyTorch
	@bench/step/run.py --qftrain target/release/qftrain --cache '$(QF_STEP)' --rounds $(ROUNDS)

reference: build ## Build, then write docs/reference/configuration.md and command-line.md anew, from the programs
	@scripts/reference.sh target/release

clean-demo: ## Remove what the demo wrote
	@scripts/demo.sh --clean
