"""One local Ray cluster for all tests of this folder; it may declare more CPUs than the machine has."""

import contextlib
import json
import os
import random
import signal
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
    # Workers import a trial's class from the test file, and thus everything that the file imports.
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, (tests, os.environ.get("PYTHONPATH"))))
    # With the default port, another cluster's dashboard answers for this one, and Ray Train removes its workers
    # (findings/ray_dashboard_of_another_cluster.sh).
    without_dashboard = {"include_dashboard": False, "dashboard_port": 0}
    ray.init(address="local", num_cpus=4, log_to_driver=False, logging_level="ERROR", **without_dashboard)
    yield
    ray.shutdown()


@pytest.fixture(scope="session")
def free_port() -> Callable[[], int]:
    """A free port of this machine, outside the range from which Ray's processes get theirs."""

    def find() -> int:
        for port in random.SystemRandom().sample(range(20_000, 30_000), 100):  # unlike for each process of tests
            with socket.socket() as probe, contextlib.suppress(OSError):
                probe.bind(("127.0.0.1", port))
                return port
        raise RuntimeError("no free port")

    return find


@pytest.fixture
def run(cluster: None) -> Callable[..., tuple[dict[str, Artifact], Store]]:
    """Run the stages of a spec, given as plain data, up to `last`."""

    def run_to(last: str, values: dict[str, Any]) -> tuple[dict[str, Artifact], Store]:
        spec = PipelineSpec.model_validate(values)
        store = Store(spec.store)
        with Progress() as progress:
            return run_stages(spec, store, progress, last, connect=lambda stages: None), store

    return run_to


@pytest.fixture(scope="session")
def wider(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A model large enough that writing checkpoints takes time and batches need memory."""
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
    """The command as a user runs it, in its own process, on its own Ray cluster."""

    def start(self, *arguments: Any) -> "subprocess.Popen[str]":
        """Start the command in a process that prints events as JSON lines."""
        command = [sys.executable, "-m", "workflows", *map(str, arguments), "--json"]
        return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)

    def events(self, process: "subprocess.Popen[str]") -> Iterator[dict[str, Any]]:
        """Its events, as they arrive."""
        assert process.stdout is not None
        for line in process.stdout:
            yield json.loads(line)

    def killed_search(self, file: Path, after: int) -> list[dict[str, Any]]:
        """Kill `tune` once this many trials have ended; the records of its trials, in `store` beside the file."""
        process = self.start("tune", file)
        for event in self.events(process):
            if event["event"] == "progress" and event["stage"] == "tune" and event["done"] >= after:
                os.kill(process.pid, signal.SIGKILL)
                break
        assert process.wait() == -signal.SIGKILL
        return [json.loads(path.read_text()) for path in (file.parent / "store").glob("trials/*/trial_*.json")]

    def finished(self, *arguments: Any) -> list[dict[str, Any]]:
        """All events of a process, which must exit with 0."""
        process = self.start(*arguments)
        seen = list(self.events(process))
        assert process.wait() == 0, seen
        return seen


@pytest.fixture(scope="session")
def command() -> Command:
    return Command()
