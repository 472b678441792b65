"""What is shown of a stage's progress."""

import json

import pytest

from workflows.progress import Progress


def test_the_time_left_is_estimated_once_enough_is_done(capsys: pytest.CaptureFixture[str]) -> None:
    with Progress(json_lines=True) as progress:
        progress.start("evaluate")
        for done in (0, 1, 5, 6, 50):
            progress.update(done, 300, "conversations")
    events = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    known = [event["done"] for event in events if event.get("seconds_left") is not None]
    assert known == [6, 50]
