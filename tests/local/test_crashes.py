"""A planted bug in a worker or a trial leaves a traceback on this machine; a user's mistake prints a sentence."""

import re
from pathlib import Path

import pytest

from workflows.cluster.errors import StageCrashed, full_traceback
from workflows.stage import StageFailed
from workflows.stages import train


def work_with_bugs(payload):
    """A training worker that fails: worker 0 with a KeyError, the other with a library's ValueError."""
    import torch

    from workflows.training.worker import TrainWorker

    def fail(*_, **__):
        return int("planted") if torch.distributed.get_rank() else {}["planted"]

    TrainWorker.train = fail
    return work(payload)


work = train._work


def test_bugs_in_training_workers_leave_their_tracebacks(run, tiny, monkeypatch):
    monkeypatch.setattr(train, "_work", work_with_bugs)
    tiny["train"] |= {"max_failures": 0}
    with pytest.raises(StageCrashed, match=r"^train: worker \d: ") as raised:
        run("train", tiny)
    found = re.findall(r"worker (\d): (\w+)", str(raised.value))  # Ray ends one as soon as the other fails
    assert found
    assert set(found) <= {("0", "KeyError"), ("1", "ValueError")}
    assert 'return int("planted") if' in full_traceback(raised.value)


def test_a_bug_in_a_trial_leaves_a_file_that_is_named(run, tiny, capsys):
    tiny["train"] |= {"num_workers": 1, "max_steps": 3, "checkpoint_every_steps": 3}
    done, store = run("prepare", tiny)
    for file in Path(store.path("prepare", done["prepare"].key, "corpus", "split=train")).glob("*.parquet"):
        file.write_bytes(file.read_bytes()[:-20])  # reading it raises a ValueError in pyarrow
    tiny["tune"] = {"space": {"train.learning_rate": [1e-3]}, "searcher": "grid", "max_failures": 0}
    with pytest.raises(
        StageFailed, match=r"^tune: no trial has reported a result: .*\(details in .*\.log\)$"
    ) as raised:
        run("tune", tiny)
    file = re.search(r"details in (.*)\)$", str(raised.value))[1]
    kept = Path(file).read_text()
    assert "pyarrow.lib.ArrowInvalid" in kept
    assert "in _train" in kept
    assert re.search(rf"tune: trial 0: worker 0: ArrowInvalid: .* \(details in {file}\)", capsys.readouterr().out)
    Path(file).unlink()
