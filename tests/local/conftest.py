"""One local Ray cluster for all tests of this folder, with more CPUs than the machine may have."""

import gzip
import json
import os
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from models.base import resolve
from workflows.pipeline import run_stages
from workflows.progress import Progress
from workflows.spec import PipelineSpec
from workflows.store import Artifact, Store


@pytest.fixture(scope="session")
def cluster() -> Iterator[None]:
    import ray

    from workflows import cluster as ours

    os.environ.update(ours.ENVIRONMENT)
    ray.init(address="local", num_cpus=4, log_to_driver=False, logging_level="ERROR")
    yield
    ray.shutdown()


@pytest.fixture
def run(cluster: None) -> Callable[..., tuple[dict[str, Artifact], Store]]:
    """Runs the stages of a spec, given as plain data, up to `last`."""

    def run_to(last: str, values: dict[str, Any]) -> tuple[dict[str, Artifact], Store]:
        spec = PipelineSpec.model_validate(values)
        store = Store(spec.store)
        with Progress() as progress:
            return run_stages(spec, store, progress, last, connect=lambda: None), store

    return run_to


def sums(count: int, seed: int = 0) -> list[dict[str, Any]]:
    """Conversations of two turns about small sums: enough to learn something from in a few steps."""
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


@pytest.fixture(scope="session")
def wider(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A model whose checkpoints take some time to write, and whose batches some memory."""
    from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

    folder = tmp_path_factory.mktemp("wider")
    tokenizer = AutoTokenizer.from_pretrained(resolve("random:tiny-llama"))
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=384, intermediate_size=1024, num_hidden_layers=6,
        num_attention_heads=6, num_key_value_heads=6, max_position_embeddings=2048, tie_word_embeddings=True,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)
