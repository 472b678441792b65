"""What tests of all folders share."""

from pathlib import Path

import pytest

from models.base import resolve


@pytest.fixture(scope="session")
def tiny_llama() -> Path:
    return resolve("random:tiny-llama")


@pytest.fixture(scope="session")
def tiny_gpt2() -> Path:
    return resolve("random:tiny-gpt2")
