"""One of our own releases as a judge, on a local cluster."""

import json
from pathlib import Path

import pytest
from stored import OPTIMIZED

from models.chat.form import Conversation
from workflows.judge.judge import read_judge
from workflows.judge.records import ToJudge
from workflows.judge.settings import find_release
from workflows.progress import Progress
from workflows.spec import EvaluateSpec, JudgeSpec
from workflows.stage import StageFailed
from workflows.store import Artifact, Store


def test_a_release_judges_on_the_workers(
    cluster: None, tmp_path: Path, tiny_llama: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A model with random weights: the schema makes even its answers readable."""
    store = Store(str(tmp_path / "store"))
    store.add_folder(str(tiny_llama), "optimize", "abc", "model")
    store.finish(Artifact("optimize", "abc", "arbiter", {}, {}, OPTIMIZED))
    with pytest.raises(StageFailed, match=r"no release 'arbitre'.*pipelines with releases: arbiter"):
        find_release(store, "arbitre")
    (tmp_path / "prompt.txt").write_text("{conversation}{first_reply}{second_reply}")
    spec = JudgeSpec(release="arbiter", prompt=str(tmp_path / "prompt.txt"), max_new_tokens=200, max_no_answer=1)
    judge = read_judge(EvaluateSpec(judge=spec), store)
    asked = Conversation([{"role": "user", "content": "Hi"}])
    items = [ToJudge(str(at), asked, "one", f"two {at}") for at in range(2)]
    with Progress(json_lines=True) as progress:
        judged = judge.compare(items, progress)
        again = judge.compare(items, progress)
    assert judged.figures.judge == "release abc of arbiter"
    assert judged.figures.input_tokens > 0
    assert (judged.figures.requests, judged.figures.no_answers) == (4, 0)
    assert (again.figures.requests, again.figures.cached) == (0, judged.figures.requests)
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["done"] == 4
    assert again.items == judged.items
