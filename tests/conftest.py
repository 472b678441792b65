"""Shared by the tests of all folders."""

import gzip
import json
import logging
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from s3_server import S3Server

from models.base.load import resolve


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
