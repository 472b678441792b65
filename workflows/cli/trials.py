"""`rayconteur trials`: the search of a run, finished, running or stopped.

Imports neither Ray nor torch.
"""

import json
from dataclasses import asdict
from typing import TYPE_CHECKING

import click

from models.errors import RayconteurError
from workflows.cli.export import export, export_options
from workflows.cli.options import open_pipeline, options

if TYPE_CHECKING:
    from workflows.search.records import Search
    from workflows.spec import PipelineSpec
    from workflows.store import RunRecord, Store

_DECIDE_THE_SEARCH = ("base_model", "data", "train", "tune")


@click.command()
@click.option("--run", "run_name", metavar="RUN", help="The run, by its name in `runs`; defaults to the last run.")
@export_options
@options("set", "json")
def trials(
    pipeline: str, overrides: tuple[str, ...], json_lines: bool, run_name: str | None, **exports: str | None
) -> None:
    """Show the trials of a run's search, best first, and the winner; or write them for another program."""
    from workflows.search.table import search_text

    spec, store = open_pipeline(pipeline, overrides)
    search = find_search(spec, store, run_name)
    if any(exports.values()):
        export(search, json_lines, **exports)
        return
    if not json_lines:
        click.echo(search_text(search))
        return
    content = asdict(search)
    for trial in content.pop("trials"):
        click.echo(json.dumps({"event": "trial", **trial}))
    click.echo(json.dumps({"event": "search", **content}))


def find_search(spec: "PipelineSpec", store: "Store", run_name: str | None) -> "Search":
    """The search of a run, by default of the pipeline's last run; raises RayconteurError if that run has none."""
    from workflows.runs.records import find_run
    from workflows.search.records import read_search

    record = find_run("trials", store, spec.name, run_name)
    key = record.key_of("tune") or _key_in_progress(spec, store, record)
    search = read_search(store, key)
    if search is None:
        raise RayconteurError(f"trials: the search of run {record.run} has not begun; start it with rayconteur tune")
    return search


def _key_in_progress(spec: "PipelineSpec", store: "Store", record: "RunRecord") -> str:
    """The key of an unfinished search, from the pipeline file: a run's record only has the key of a finished one."""
    from workflows.runs.state import examine
    from workflows.store import without_secrets

    now = json.loads(without_secrets(spec.model_dump_json()))
    changed = [name for name in _DECIDE_THE_SEARCH if now.get(name) != record.spec.get(name)]
    if changed:
        raise RayconteurError(
            f"trials: run {record.run} did not complete a search, and {', '.join(changed)} of the pipeline file "
            "differs from what it ran with; give the same --set, or name another run with --run"
        )
    state = next((state for state in examine(spec, store, "tune") if state.stage.name == "tune"), None)
    if state is None:
        raise RayconteurError(f"trials: pipeline {spec.name} has no section tune, so its runs have no search")
    return state.key
