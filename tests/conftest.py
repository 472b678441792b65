"""Shared by the tests of all folders."""

import gc
import gzip
import json
import logging
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from s3_server import S3Server

from models.base.load import load_model, resolve
from models.generation import greedy_replies

Conversation = tuple[list[int], list[bool]]
TESTS = len(Path(__file__).parts) - 1  # where a test's path has the folder below tests


_FOLDERS = {"endpoint": 1, "local": 2, "hosts": 3, "llm": 3}
_LONGEST = ("bad_requests", "formats", "endpoint", "pair", "search", "jobs", "deploy", "preference", "crashes")

# Collecting makes objects by the hundred thousand that stay: the collector would go through them again and again.
gc.disable()


def pytest_collection_finish() -> None:
    gc.freeze()
    gc.enable()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put the files with Ray last, and of these the longest first: one that begins last would run alone."""
    items.sort(key=lambda item: _place(item.path.parts[TESTS:]))


def _place(parts: tuple[str, ...]) -> tuple[int, int]:
    folder, name = _FOLDERS.get(parts[0], 0), parts[-1].removeprefix("test_").removesuffix(".py")
    return folder, _LONGEST.index(name) if folder and name in _LONGEST else len(_LONGEST)


@pytest.fixture(scope="session")
def tiny_llama() -> Path:
    return resolve("random:tiny-llama")


@pytest.fixture(scope="session")
def tiny_gpt2() -> Path:
    return resolve("random:tiny-gpt2")


@pytest.fixture(scope="session")
def s3_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = S3Server(tmp_path_factory.mktemp("s3") / "away")
    server.start()
    yield server
    server.stop()


@pytest.fixture
def s3_uri(s3_server: S3Server, tmp_path: Path) -> str:
    """A path on the server for this test alone."""
    return f"s3://testing:testing@bucket/{tmp_path.name}{s3_server.options}"


def sums(count: int, seed: int = 0) -> list[dict[str, Any]]:
    """Two-turn conversations about small sums, which a model starts to learn in a few steps."""
    draw = random.Random(seed)
    records = []
    for _ in range(count):
        a, b = draw.randrange(50), draw.randrange(50)
        records.append(
            {
                "messages": [
                    {"role": "user", "content": f"{a}+{b}?"},
                    {"role": "assistant", "content": f"It is {a + b}."},
                    {"role": "user", "content": "Sure?"},
                    {"role": "assistant", "content": f"Yes, {a + b}."},
                ]
            }
        )
    return records


@pytest.fixture
def sums_file(tmp_path: Path) -> Path:
    file = tmp_path / "sums.jsonl.gz"
    with gzip.open(file, "wt") as stream:
        stream.writelines(json.dumps(record) + "\n" for record in sums(120))
    return file


@pytest.fixture
def tiny(tmp_path: Path, sums_file: Path) -> dict[str, Any]:
    """A pipeline that runs in seconds."""
    return {
        "name": "tiny",
        "store": str(tmp_path / "store"),
        "base_model": "random:tiny-llama",
        "data": {"sources": [{"path": str(sums_file)}], "held_out_share": 0.1},
        "train": {
            "adapter": None,
            "precision": "fp32",
            "epochs": 1,
            "batch_tokens": 512,
            "learning_rate": 3e-3,
            "num_workers": 2,
        },
        "evaluate": {"num_replies": 1, "max_new_tokens": 8},
        "serve": {"precision": "fp32"},
    }


@pytest.fixture(autouse=True, scope="session")
def one_thread() -> None:
    """Models of this size are slower with more threads."""
    torch.set_num_threads(1)


@pytest.fixture(params=["llama", "gpt2"])
def tiny_model(request: pytest.FixtureRequest) -> Path:
    """The folder of each tiny model: one with rotary positions and Linear layers, one with learned positions and
    Conv1D.
    """
    folder: Path = request.getfixturevalue(f"tiny_{request.param}")
    return folder


@pytest.fixture(scope="session")
def make_loud() -> Callable[[Path], Any]:
    """Load a model with scaled-up weights. Without scaling, a tiny model repeats one token whatever the prompt."""

    def load(folder: Path) -> Any:
        model = load_model(folder, torch.float32)
        torch.manual_seed(0)
        model.config.tie_word_embeddings = False
        model.lm_head.weight = torch.nn.Parameter(torch.randn_like(model.lm_head.weight))
        for name, parameter in model.base_model.named_parameters():
            parameter.data *= 8 if "proj" in name or "c_attn" in name or "c_fc" in name else 1
        return model

    return load


@pytest.fixture(scope="session")
def own_words() -> Callable[[Any], list[Conversation]]:
    """Conversations that the model has generated greedily, because it assigns high probabilities to them."""

    def said(model: Any) -> list[Conversation]:
        prompts = [[7 * n % 200, n, 3 * n + 1] for n in range(1, 9)]
        return [([*p, *greedy_replies(model, [p], 30, [0])[0]], [False] * 3 + [True] * 30) for p in prompts]

    return said


_TURNS = (
    "{%% for message in messages %%}<|start_header_id|>{{ message.role }}<|end_header_id|>\n\n{{ message.content }}"
    "{%% for call in message.tool_calls %%}%s{%% endfor %%}<|eot_id|>{%% endfor %%}"
    "{%% if add_generation_prompt %%}<|start_header_id|>assistant<|end_header_id|>\n\n{%% endif %%}"
)
_TOLD = "{% if tools %}{% for tool in tools %}{{ tool.function | tojson }}\n{% endfor %}{% endif %}"
_CALL = '{"name": "{{ call.function.name }}", "%s": {{ call.function.arguments | tojson }}}'


@pytest.fixture(scope="session")
def tool_templates() -> dict[str, str]:
    """Chat templates that write tool calls in the formats of the large model families."""
    calls = {
        "tags": "<tool_call>\n" + _CALL % "arguments" + "\n</tool_call>",
        "bare": _CALL % "parameters",
        "listed": "[TOOL_CALLS][" + _CALL % "arguments" + "]",
    }
    return {name: _TOLD + _TURNS % text for name, text in calls.items()}
