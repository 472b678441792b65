"""`best_of`: the reply with the highest score of the release's discriminator."""

import asyncio
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch

from models.base import adapters
from models.base.discriminator import Discriminator, open_discriminator, release_discriminator
from models.base.load import load_model, load_tokenizer
from models.kernels.attention import PACKED_ATTENTION
from models.packing import pack
from serve.api.routes import create_app
from serve.api.settings import ApiSettings
from serve.engines.torch import TorchEngine
from serve.replies.reranker import Reranker

MODEL = "talker"
HELLO = [{"role": "user", "content": "Hello"}]


@pytest.fixture(scope="module")
def reranker(
    tmp_path_factory: pytest.TempPathFactory, make_loud: Callable[[Path], Any], tiny_llama: Path
) -> Reranker:
    folder = tmp_path_factory.mktemp("discriminator")
    torch.manual_seed(3)
    discriminator = Discriminator(make_loud(tiny_llama), max_reply_tokens=6)
    discriminator.save_pretrained(folder, discriminator.state_dict())
    return Reranker(folder)


@pytest.fixture(scope="module", params=[True, False], ids=["with a discriminator", "without"])
def url(
    request: pytest.FixtureRequest,
    reranker: Reranker,
    save_talker: Callable[..., Path],
    serving: Callable[[Any], AbstractContextManager[str]],
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[str]:
    release = save_talker(tmp_path_factory.mktemp("release"))
    engine = TorchEngine(release, precision="fp32", num_threads=1)
    app = create_app(
        engine,
        load_tokenizer(release),
        MODEL,
        settings=ApiSettings(max_new_tokens=8),
        reranker=reranker if request.param else None,
    )
    with serving(app) as url:
        yield url
    engine.close()


def post(url: str, **fields: Any) -> httpx.Response:
    body = {"model": MODEL, "messages": HELLO, "seed": 5, **fields}
    return httpx.post(f"{url}/v1/chat/completions", json=body, timeout=20)


def test_best_of_returns_the_reply_with_the_highest_score(url: str, reranker: Reranker) -> None:
    answer = post(url, best_of=4, best_of_by="argmax")
    if answer.status_code != 200:
        assert answer.status_code == 400
        assert "this release has no discriminator" in answer.json()["error"]["message"]
        assert post(url, best_of=1).status_code == 200
        return
    said = answer.json()
    [choice] = said["choices"]
    all_of_them = [item["message"]["content"] for item in post(url, n=4).json()["choices"]]
    scores, chosen = choice["best_of"]["scores"], choice["best_of"]["chosen"]
    assert len(set(scores)) > 1
    assert scores[chosen] == max(scores)
    assert choice["message"]["content"] == all_of_them[chosen]
    assert said["usage"]["completion_tokens"] == 4 * 8
    assert post(url, n=4).json()["choices"][0]["best_of"] is None


def test_fields_that_conflict_with_best_of_are_refused(url: str) -> None:
    for fields, param, words in (
        ({"best_of": 3, "stream": True}, "best_of", "without stream"),
        ({"best_of": 3, "n": 2}, "best_of", "not both"),
        ({"best_of_by": "argmax"}, "best_of_by", "best_of above 1"),
        ({"best_of": 0}, "best_of", "greater than or equal to 1"),
    ):
        answer = post(url, **fields)
        assert answer.status_code == 400
        error = answer.json()["error"]
        assert error["param"] == param
        assert words in error["message"]


def test_softmax_draws_by_the_scores_and_the_same_with_the_same_seed(reranker: Reranker) -> None:
    replies = [[5, 6], [7, 8, 9], [10]]
    scores = torch.tensor(reranker.scores([1, 2, 3], replies))

    def draw(seed: int | None) -> int:
        return asyncio.run(reranker.chooser("softmax", seed)([1, 2, 3], replies)).chosen

    drawn = torch.bincount(torch.tensor([draw(seed) for seed in range(600)]), minlength=3) / 600
    torch.testing.assert_close(drawn, scores.softmax(0), atol=0.08, rtol=0)
    assert draw(4) == draw(4) == draw(4 - 2**64)
    assert draw(None) in range(3)


def test_replies_are_scored_up_to_the_discriminators_max_length(reranker: Reranker) -> None:
    long = [5, 6, 7, 8, 9, 10]
    one, same, shorter = reranker.scores([1, 2], [long, [*long, 11, 12], long[:-1]])
    assert one == pytest.approx(same, abs=1e-3)
    assert one != pytest.approx(shorter, abs=1e-3)


def test_a_released_discriminator_scores_like_its_checkpoint(tiny_llama: Path, tmp_path: Path) -> None:
    torch.manual_seed(0)
    reader = adapters.attach(
        load_model(tiny_llama, torch.float32, PACKED_ATTENTION), 4, 8.0, 0.0, "all-linear", base="x"
    )
    for name, parameter in reader.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    discriminator = Discriminator(reader, max_reply_tokens=9).eval()
    discriminator.save_pretrained(tmp_path / "checkpoint", discriminator.state_dict(), save_embedding_layers=False)
    release_discriminator(tiny_llama, tmp_path / "checkpoint", tmp_path / "release")
    batch = pack([([1, 2, 3, 4], [True] * 4), ([5, 6], [True] * 2)])
    released = open_discriminator(tmp_path / "release")
    assert released.max_reply_tokens == 9
    assert not hasattr(released.reader, "peft_config")
    torch.testing.assert_close(released(batch), discriminator(batch), atol=0.02, rtol=0.02)
    torch.testing.assert_close(open_discriminator(tmp_path / "checkpoint", tiny_llama)(batch), discriminator(batch))
