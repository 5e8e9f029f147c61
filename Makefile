# `make quickstart` and `make test` do all their own set-up from a fresh clone; they need Python 3.11+ and make.
PYTHON ?= python3
BIN = .venv/bin

.PHONY: quickstart test fast lint engines engine_locks evidence generated clean

quickstart: .venv/core
	$(BIN)/qwen-align run recipes/quickstart.yaml

# Every core, a file's tests in one process, the files that take longest first (tests/conftest.py).
SPREAD = -n auto --dist loadfile --no-loadscope-reorder

test: .venv/dev
	$(BIN)/pytest $(SPREAD)

fast: .venv/dev
	$(BIN)/pytest $(SPREAD) -m "not slow and not engine and not evidence" --hypothesis-profile fast

# What needs packages that CI does without: the real trackers and DeepSpeed, in an environment of their own, and the engines,
# each in its own. A package that is missing fails there, and so does a run without a test. Needs a C++ compiler, for
# DeepSpeed's operators and llama.cpp. The engines for CPUs have locks for Python 3.11: make engines PYTHON=python3.11.
ENGINES = QWEN_ALIGN_ENGINES=$(CURDIR)/build/engine_environments
engines: build/engines/bin/pytest
	$(ENGINES) build/engines/bin/qwen-align engines install vllm --device cpu
	$(ENGINES) build/engines/bin/qwen-align engines install llmcompressor --device cpu
	$(ENGINES) build/engines/bin/qwen-align engines install llama_cpp --device cpu
	$(ENGINES) build/engines/bin/pytest -m engine -v --timeout 3600

build/engines/bin/pytest: pyproject.toml constraints.txt
	$(PYTHON) -m venv build/engines
	build/engines/bin/pip install --quiet -c constraints.txt -e '.[deepspeed,dev,trackio,wandb]'
	touch $@

lint: .venv/dev .typing/qwen_align
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# The locks of the engines, after a change of align/engines/catalogue.py: the one target that asks what is newest.
engine_locks: .venv/dev
	$(PYTHON) -m venv build/uv
	build/uv/bin/pip install --quiet uv
	$(BIN)/python tests/align/engines/renew_locks.py build/uv/bin/uv

# What programs write: the records of new kinds of stage and new recipes, docs/reference.md, the tables of docs/scaling.md.
generated: .venv/dev
	$(BIN)/python tests/architecture/test_code_versions.py --new
	$(BIN)/python tests/align/store/test_keys.py --new
	$(BIN)/python -m qwen_align.align.commands.settings_reference docs/reference.md
	$(BIN)/python -m qwen_align.align.commands.scaling_tables docs/scaling.md

# What takes longer than CI should: sweeps over every task, properties on thousands of examples, seeds, controls, kills,
# planted faults, benchmarks. Figures go to docs/ by hand.
evidence: .venv/dev
	$(BIN)/pytest $(SPREAD) -m "evidence or hypothesis" --hypothesis-profile evidence --timeout 7200
	$(BIN)/qwen-align run recipes/tiny_base.yaml --home build/evidence --set seed=1
	$(BIN)/qwen-align run recipes/evidence.yaml --home build/evidence --set 'matrix={seed: [0, 1, 2], base: [{shipped: tiny_base}, {path: ../build/evidence/runs/tiny_base/stages/base/model}]}'
	$(BIN)/qwen-align run recipes/online_rl.yaml --home build/evidence --set 'matrix={seed: [0, 1, 2]}'
	$(BIN)/python tests/evidence/kills.py
	$(BIN)/python tests/bench/rollout.py
	$(BIN)/python tests/bench/grpo_step.py
	$(BIN)/python tests/bench/sft_step.py
	$(BIN)/python tests/bench/math_answer.py
	$(BIN)/python tests/bench/code_tests.py
	$(BIN)/python tests/bench/contamination.py
	$(BIN)/python tests/bench/near_duplicates.py
	$(BIN)/python tests/evidence/faults.py

.venv/bin/pip:
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed: make PYTHON=python3.12")'
	$(PYTHON) -m venv .venv

.venv/core: .venv/bin/pip pyproject.toml constraints.txt
	$(BIN)/pip install --quiet -c constraints.txt -e .
	touch $@

.venv/dev: .venv/bin/pip pyproject.toml constraints.txt
	$(BIN)/pip install --quiet -c constraints.txt -e '.[dev]'
	touch .venv/core $@

# Type checkers do not see that the root is the package `qwen_align`.
.typing/qwen_align:
	mkdir -p .typing
	ln -s .. $@

clean:
	rm -rf .venv .typing build store runs *.egg-info
