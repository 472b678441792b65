"""Shared by the unit tests: a server on a free port, models that generate varied text, a reference loss."""

import random
import string
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
import uvicorn

from models.base.load import load_model, load_tokenizer
from models.generation import greedy_replies

Conversation = tuple[list[int], list[bool]]


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
def serving() -> Callable[[Any], AbstractContextManager[str]]:
    """`with serving(app) as url`: the app on a free port of this machine, in a thread."""

    @contextmanager
    def serve(app: Any) -> Iterator[str]:
        server = uvicorn.Server(uvicorn.Config(app, port=0, log_level="warning"))
        thread = threading.Thread(target=server.run)
        thread.start()
        while not server.started:
            time.sleep(0.01)
        try:
            yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
        finally:
            server.should_exit = True
            thread.join()

    return serve


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
def save_talker(make_loud: Callable[[Path], Any], tiny_llama: Path) -> Callable[..., Path]:
    """Save a release that generates ASCII letters, one per token, and either ends its replies or never does."""

    def save(folder: Path, ends: bool = False, template: str | None = None, positions: int = 30_000) -> Path:
        model, tokenizer = make_loud(tiny_llama), load_tokenizer(tiny_llama)
        tokenizer.chat_template = template or tokenizer.chat_template
        said = tokenizer.convert_tokens_to_ids([*string.ascii_letters, *(["<|eot_id|>"] if ends else [])])
        loudness = torch.zeros(len(tokenizer), 1)
        loudness[said] = 1
        model.lm_head.weight.data *= loudness
        model.config.max_position_embeddings = positions
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        return folder

    return save


@pytest.fixture
def token_rows() -> list[Conversation]:
    """Conversations of 5 to 60 random tokens, half of them supervised."""
    draw = random.Random(0)
    lengths = [draw.randrange(5, 60) for _ in range(7)]
    return [([draw.randrange(200) for _ in range(n)], [draw.random() < 0.5 for _ in range(n)]) for n in lengths]


@pytest.fixture(scope="session")
def own_words() -> Callable[[Any], list[Conversation]]:
    """Conversations that the model has generated greedily, because it assigns high probabilities to them."""

    def said(model: Any) -> list[Conversation]:
        prompts = [[7 * n % 200, n, 3 * n + 1] for n in range(1, 9)]
        return [([*p, *greedy_replies(model, [p], 30, [0])[0]], [False] * 3 + [True] * 30) for p in prompts]

    return said


@pytest.fixture
def plain_loss_sum() -> Callable[[Any, list[Conversation]], torch.Tensor]:
    """The supervised loss by transformers' own forward and attention, one conversation and token at a time."""

    def loss_sum(model: Any, rows: list[Conversation]) -> torch.Tensor:
        total = torch.zeros(())
        for ids, supervised in rows:
            logits = model(torch.tensor([ids])).logits[0]
            for position in range(1, len(ids)):
                if supervised[position]:
                    total = total - F.log_softmax(logits[position - 1].float(), -1)[ids[position]]
        return total

    return loss_sum


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
