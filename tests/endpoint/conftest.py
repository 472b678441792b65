"""Shared by the tests of the endpoint without Ray: a server on a free port, a release that generates letters."""

import string
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import openai
import pytest
import torch
import uvicorn

from models.base.load import load_tokenizer
from serve.api.routes import create_app
from serve.api.settings import ApiSettings
from serve.engines.torch import TorchEngine


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


@pytest.fixture(scope="session")
def serving_talker(
    save_talker: Callable[..., Path],
    serving: Callable[[Any], AbstractContextManager[str]],
    tmp_path_factory: pytest.TempPathFactory,
) -> Callable[..., AbstractContextManager[tuple[TorchEngine, str, openai.OpenAI]]]:
    """`with serving_talker(model, ends, template, positions)`: its engine, the endpoint's URL, a client for it.

    Further arguments are of `ApiSettings`.
    """

    @contextmanager
    def served(model: str, *release: Any, **settings: Any) -> Iterator[tuple[TorchEngine, str, openai.OpenAI]]:
        folder = save_talker(tmp_path_factory.mktemp("release"), *release)
        engine = TorchEngine(folder, precision="fp32", max_active=2, num_threads=1)
        app = create_app(engine, load_tokenizer(folder), model, "3f2a", ApiSettings(max_new_tokens=16, **settings))
        with (
            serving(app) as url,
            openai.OpenAI(base_url=f"{url}/v1", api_key="any", max_retries=0, timeout=20) as client,
        ):
            yield engine, url, client
        engine.close()

    return served
