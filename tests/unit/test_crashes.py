"""A user's mistake prints one sentence; any other error leaves its traceback in a file, and prints the path."""

import errno
import json
import pickle
import re
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from click.testing import CliRunner, Result
from ray.exceptions import ActorDiedError, RayTaskError
from ray.train.v2.api.exceptions import ControllerError, WorkerGroupError

from models.base.load import BaseModelError
from models.chat import Conversation
from models.errors import RayconteurError
from models.training.fit import TrainingDiverged
from serve.deployment import front_actor
from workflows.cli.commands import command
from workflows.cluster import connection, workers
from workflows.cluster.errors import (
    StageCrashed,
    describe_error,
    full_traceback,
    is_users_mistake,
    mistake_in,
    note_traceback,
)
from workflows.corpus import lines
from workflows.corpus.checks import Checks
from workflows.corpus.encoding import Encoding
from workflows.corpus.errors import UnusableLine
from workflows.corpus.example import Example
from workflows.progress import Progress
from workflows.spec import PipelineSpec
from workflows.spec.data import FiltersSpec, PrivateSpec
from workflows.stage import Context, GateFailed, StageFailed
from workflows.stages import deploy, prepare
from workflows.store import Store
from workflows.training.recovery import failure_text, failure_traceback

MISTAKE = BaseModelError("base_model: there is no folder /x;\ngive one")
RETRIED = "\nFailed to apply UDF transform after 1/1 attempts (total backoff 0.0s).\nTo change"


def raised(make: Callable[[], Any]) -> Exception:
    """The exception that `make` raises, with its traceback."""
    try:
        make()
    except Exception as error:
        return error
    raise AssertionError("nothing was raised")


def of_user() -> Exception:
    def fail() -> None:
        raise BaseModelError(*MISTAKE.args)

    return raised(fail)


def of_library() -> Exception:
    """A library's ValueError."""
    return raised(lambda: int("many"))


def of_bug() -> Exception:
    return raised(lambda: {}["planted"])


def in_task(cause: Exception) -> Exception:
    """The error as `ray.get` raises it, after the object store has pickled it."""
    text = "".join(traceback.format_exception(cause))
    return RayTaskError("task", text, cause, "ray::task", 1, "10.0.0.1").as_instanceof_cause()


def in_constructor(cause: Exception) -> Exception:
    """Ray's error for an actor that failed in `__init__`: it contains the cause only as text."""
    text = "".join(traceback.format_exception(cause))
    return ActorDiedError(RayTaskError("__init__", text, cause, "ray::A", 1, "10.0.0.1", "A()", "ab" * 16))


def in_worker(cause: Exception) -> Exception:
    """The error as Ray Train passes it on: without its traceback, except for a note."""
    note_traceback(cause)
    found: Exception = pickle.loads(pickle.dumps(cause))
    assert found.__traceback__ is None
    return found


def of_train(*causes: Exception) -> Exception:
    return WorkerGroupError("[Rank 0 Error Snippet]: ...", dict(enumerate(map(in_worker, causes))))


MISTAKES = [
    (MISTAKE, str(MISTAKE)),
    (in_task(MISTAKE), str(MISTAKE)),
    (in_task(in_task(MISTAKE)), str(MISTAKE)),
    (in_task(BaseModelError(f"{MISTAKE}{RETRIED}")), str(MISTAKE)),
    (in_task(TrainingDiverged("train: the loss is nan", [3])), "train: the loss is nan"),
    (in_constructor(of_user()), str(MISTAKE)),
    (ControllerError(MISTAKE), str(MISTAKE)),
    (
        in_task(OSError(errno.ENOSPC, "No space left")),
        "[Errno 28] No space left; free some space, then run the same command",
    ),
]
CRASHES = [
    (of_bug(), "KeyError: 'planted'"),
    (of_library(), "ValueError: invalid literal for int() with base 10: 'many'"),
    (RuntimeError(), "RuntimeError (no message)"),
    (in_task(of_bug()), "KeyError: 'planted'"),
    (in_task(KeyError(f"planted{RETRIED}")), "KeyError: 'planted'"),
    (in_task(in_task(of_library())), "ValueError: invalid literal"),
    (in_constructor(of_library()), "ActorDiedError: ValueError: invalid literal"),
    (ControllerError(in_task(of_bug())), "KeyError: 'planted'"),
    (in_task(PermissionError(errno.EACCES, "Permission denied")), "PermissionError: [Errno 13]"),
]


@pytest.mark.parametrize(("error", "words"), MISTAKES)
def test_a_users_mistake_is_recognised_wherever_it_is_raised(error: Exception, words: str) -> None:
    assert is_users_mistake(error)
    assert describe_error(error).startswith(words)
    assert len(describe_error(error)) <= len(words) + 40


@pytest.mark.parametrize(("error", "words"), CRASHES)
def test_any_other_error_is_not_and_its_traceback_is_complete(error: Exception, words: str) -> None:
    assert not is_users_mistake(error)
    assert describe_error(error).startswith(words)
    assert "\x1b" not in full_traceback(error)
    if "'planted'" in words and RETRIED not in str(error):
        assert 'raised(lambda: {}["planted"])' in full_traceback(error) or RETRIED[1:10] in full_traceback(error)


def test_what_wraps_a_mistake_for_the_user_is_the_sentence() -> None:
    def wrap() -> None:
        raise StageFailed("data.sources: nothing found") from OSError("gone")

    assert describe_error(in_task(raised(wrap))) == describe_error(raised(wrap)) == "data.sources: nothing found"


def test_every_failed_worker_counts() -> None:
    assert is_users_mistake(of_train(MISTAKE, MISTAKE))
    error = of_train(MISTAKE, of_bug(), of_library())
    assert not is_users_mistake(error)
    failures: dict[int, Exception] = error.worker_failures  # type: ignore[attr-defined]
    assert failure_text(failures) == (
        f"worker 0: {MISTAKE}; worker 1: KeyError: 'planted'; worker 2: ValueError: invalid literal for int() with "
        "base 10: 'many'"
    )
    crashed = StageCrashed("train: ...")
    crashed.__cause__ = error
    for text in (full_traceback(crashed), failure_traceback(failures)):
        assert 'raised(lambda: {}["planted"])' in text
        assert 'raised(lambda: int("many"))' in text
    assert failure_traceback({0: MISTAKE}) == ""


def test_a_mistake_is_read_from_the_text_of_a_traceback() -> None:
    text = f"Deploying failed\nray::A()\n  File x\nmodels.base.load.BaseModelError: {MISTAKE}\n"
    assert str(mistake_in(text)) == str(MISTAKE)
    for other in (
        "ValueError: x",
        "models.base.load.NoSuchClass: x",
        "models.base.load.Path: x",
        "serve.nothing.E: x",
    ):
        assert mistake_in(f"Traceback\n{other}") is None


@pytest.fixture
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[], list[Path]]:
    """The traceback files that exist."""
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    return lambda: [path for path in folder.glob("rayconteur-*.log") if re.search(r"-\w{8}\.log$", path.name)]


@pytest.fixture
def prepare_with(tmp_path: Path, tiny: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> Callable[..., Result]:
    """Runs the command `prepare` without a cluster; the stage raises an error."""
    file = tmp_path / "pipeline.yaml"
    file.write_text(yaml.safe_dump(tiny))
    monkeypatch.setattr(connection.Connection, "open", lambda self: None)
    monkeypatch.setattr(workers, "check_fits", lambda *_: None)

    def run(error: BaseException, *options: str) -> Result:
        def fail(context: Any) -> None:
            raise error

        monkeypatch.setattr(prepare, "run", fail)
        return CliRunner().invoke(command, ["prepare", str(file), *options])

    return run


@pytest.mark.parametrize("error", [
    of_bug(), of_library(), in_task(of_bug()), in_task(of_library()), RuntimeError("odd"),
], ids=repr)  # fmt: skip
def test_a_bug_in_a_stage_leaves_a_file_that_is_named(
    prepare_with: Callable[..., Result], files: Callable[[], list[Path]], error: Exception
) -> None:
    done = prepare_with(error)
    assert done.exit_code == 1
    [file] = files()
    [line] = [line for line in done.output.splitlines() if line.startswith("error: ")]
    assert line.endswith(f" (details in {file})")
    assert describe_error(error) in line
    assert "Traceback" not in done.output
    kept = file.read_text()
    assert "in fail" in kept
    assert "Traceback" in kept
    assert 'raised(lambda: {}["planted"])' in kept or 'raised(lambda: int("many"))' in kept or "odd" in kept

    done = prepare_with(error, "--json")
    event = json.loads(done.output.splitlines()[-1])
    assert event["event"] == "error"
    assert Path(event["traceback"]).read_text()
    assert event["text"].endswith(f" (details in {event['traceback']})")


@pytest.mark.parametrize(("error", "code", "words"), [
    (MISTAKE, 1, f"error: {MISTAKE}\n"),
    (in_task(MISTAKE), 1, f"error: {MISTAKE}\n"),
    (in_task(OSError(errno.ENOSPC, "No space left")), 1, "error: prepare: [Errno 28] No space left; free some space"),
    (GateFailed("evaluate: failed"), 1, "error: evaluate: failed\n"),
    (RayconteurError("train: too little data"), 1, "error: train: too little data\n"),
    (FileNotFoundError(2, "No such file"), 1, "error: [Errno 2] No such file; check the path"),
    (KeyboardInterrupt(), 130, "error: stopped; run the same command to resume\n"),
], ids=repr)  # fmt: skip
def test_a_users_mistake_in_a_stage_leaves_none(
    prepare_with: Callable[..., Result],
    files: Callable[[], list[Path]],
    error: BaseException,
    code: int,
    words: str,
) -> None:
    done = prepare_with(error)
    assert done.exit_code == code
    assert words in done.output
    assert "Traceback" not in done.output
    assert files() == []


# In a new process: once connected, Ray does not look at the address.
_OPEN_EACH = """
import sys
from workflows.cluster.connection import Connection
from workflows.cluster.errors import ClusterError
from workflows.spec import ClusterSpec
for address in sys.argv[1:]:
    try:
        Connection(ClusterSpec(address=address)).open()
    except ClusterError as error:
        print(error)
"""


def test_an_invalid_cluster_address_is_the_users_mistake() -> None:
    addresses = ["head", "10.0.0.1", "localhost:abc", "http://head:8265"]
    command = [sys.executable, "-c", _OPEN_EACH, *addresses]
    said = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
    starts = [
        f"cluster.address: got '{address}', which is not the address of a Ray cluster (" for address in addresses
    ]
    assert [line.startswith(start) for line, start in zip(said, starts, strict=True)] == [True] * 4, said


class NoBoard:
    """A board that nobody reads."""

    class add:
        @staticmethod
        def remote(**counters: float) -> None:
            pass


def test_a_librarys_error_over_a_line_sets_it_aside_and_leaves_a_file(
    tiny: dict[str, Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    files: Callable[[], list[Path]],
    capsys: pytest.CaptureFixture[str],
) -> None:
    def read(self: Encoding, text: bytes, mismatched: str) -> Example:
        if text == b"mine":
            raise UnusableLine("not JSON")
        return Example(Conversation([{"role": "user", "content": str(int("planted"))}]))

    checks = Checks.of(PrivateSpec(), FiltersSpec(), None, None)
    monkeypatch.setattr(lines, "_made_ready", lambda *_: (Encoding.__new__(Encoding), checks))
    monkeypatch.setattr(Encoding, "read", read)
    columns = {"source": [0, 0, 0], "line": [1, 2, 3], "text": [b"mine", b"a", b"b"], "unread": [""] * 3}
    batch = pa.table({**columns, "mismatched": [""] * 3})
    shared = lines.Shared("", None, None, None, ["talks.jsonl"])  # type: ignore[arg-type]
    encoded = lines.encode_lines(batch, shared, NoBoard)
    store = Store(str(tmp_path / "store"))
    pq.write_to_dataset(encoded, store.path("prepare", "key", "corpus"), partition_cols=["split"])
    context = Context(PipelineSpec.model_validate(tiny), store, "key", {}, Progress())
    figures, crashes = prepare._statistics(context, ["talks.jsonl"])
    prepare._note_crashes(context, crashes)
    assert figures.quarantined == 3
    kept = Path(store.path("prepare", "key", "quarantine.jsonl")).read_text().splitlines()
    words = "ValueError: invalid literal for int() with base 10: 'planted'"
    assert [json.loads(line)["reason"] for line in kept] == ["not JSON", words, words]
    [file] = files()
    assert 'int("planted")' in file.read_text()
    assert f"prepare: lines are set aside for {words} (details in {file})" in capsys.readouterr().out


def test_why_a_replica_did_not_start_is_read_from_what_ray_serve_keeps(monkeypatch: pytest.MonkeyPatch) -> None:
    error = RuntimeError("Deploying application tiny failed: Failed to update the deployments ['ChatReplica'].")
    for cause, kind, words in ((of_user(), StageFailed, str(MISTAKE)), (of_bug(), StageCrashed, "deploy: Ray Serve")):
        kept = "The deployment failed to start 3 times.\n" + "".join(traceback.format_exception(cause))
        monkeypatch.setattr(front_actor, "startup_failures", lambda name, kept=kept: kept)
        found = deploy._not_started("tiny", error)
        assert type(found) is kind
        assert str(found).startswith(words)
    assert 'raised(lambda: {}["planted"])' in full_traceback(found)
