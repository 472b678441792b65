"""One local Ray cluster for all tests of this folder, with more CPUs than the machine may have."""

import contextlib
import json
import os
import random
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from models.base.load import resolve
from workflows.progress import Progress
from workflows.runs.run import run_stages
from workflows.spec import PipelineSpec
from workflows.store import Artifact, Store


@pytest.fixture(scope="session")
def cluster() -> Iterator[None]:
    import ray

    from workflows.cluster import connection as ours

    tests = str(Path(__file__).parents[1])
    os.environ.update(ours.ENVIRONMENT)
    # A trial's class is imported by its worker from the test's file, with what that file imports.
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, (tests, os.environ.get("PYTHONPATH"))))
    ray.init(address="local", num_cpus=4, log_to_driver=False, logging_level="ERROR")
    yield
    ray.shutdown()


@pytest.fixture(scope="session")
def free_port() -> Callable[[], int]:
    """A port of this machine that nobody listens on, and that no process of Ray's is given by chance."""

    def find() -> int:
        for port in random.sample(range(20_000, 30_000), 100):
            with socket.socket() as probe, contextlib.suppress(OSError):
                probe.bind(("127.0.0.1", port))
                return port
        raise RuntimeError("no free port")

    return find


@pytest.fixture
def run(cluster: None) -> Callable[..., tuple[dict[str, Artifact], Store]]:
    """Runs the stages of a spec, given as plain data, up to `last`."""

    def run_to(last: str, values: dict[str, Any]) -> tuple[dict[str, Artifact], Store]:
        spec = PipelineSpec.model_validate(values)
        store = Store(spec.store)
        with Progress() as progress:
            return run_stages(spec, store, progress, last, connect=lambda stages: None), store

    return run_to


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


class Command:
    """The command as a user runs it, in a process of its own, on a Ray cluster of its own."""

    def start(self, *arguments: Any) -> "subprocess.Popen[str]":
        """A process whose output are events."""
        command = [sys.executable, "-m", "workflows", *map(str, arguments), "--json"]
        return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)

    def events(self, process: "subprocess.Popen[str]") -> Iterator[dict[str, Any]]:
        """What it says, as it says it."""
        assert process.stdout is not None
        for line in process.stdout:
            yield json.loads(line)

    def finished(self, *arguments: Any) -> list[dict[str, Any]]:
        """All events of a process that ends well."""
        process = self.start(*arguments)
        seen = list(self.events(process))
        assert process.wait() == 0, seen
        return seen


@pytest.fixture(scope="session")
def command() -> Command:
    return Command()
