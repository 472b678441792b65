"""`rayconteur trials`: the search of a run, finished, running or stopped; and what people ask of a running one.

Imports neither Ray nor torch.
"""

import contextlib
import gc
import json
import re
from collections.abc import Iterator
from typing import TYPE_CHECKING

import click

from models.errors import RayconteurError
from workflows.cli.export import export, export_options
from workflows.cli.options import open_pipeline, options

if TYPE_CHECKING:
    from workflows.search.records import Search
    from workflows.search.steering_requests import SteeringRequest
    from workflows.spec import PipelineSpec
    from workflows.store import RunRecord, Store

_DECIDE_THE_SEARCH = ("base_model", "data", "train", "tune")
_FIND_THE_RUN = ("name", "store")
_BETWEEN_FIELDS = re.compile(r"[,\s]+(?=[\w.]+=)")


@contextlib.contextmanager
def _without_collector() -> Iterator[None]:
    """Python's garbage collector would look at the reports of thousands of trials again and again."""
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


@click.command()
@click.option("--run", "run_name", metavar="RUN", help="The run, by its name in `runs`; defaults to the last run.")
@export_options
@click.option(
    "--stop",
    "stops",
    type=click.IntRange(0),
    multiple=True,
    metavar="TRIAL",
    help="End this trial of the running search at its next report. Repeatable.",
)
@click.option(
    "--add",
    "adds",
    multiple=True,
    metavar="FIELD=VALUE...",
    help="Add a trial with these values to the running search: fields of tune.space, separated by spaces; the others "
    "as in PIPELINE. Repeatable.",
)
@click.option(
    "--clone",
    type=click.IntRange(0),
    metavar="TRIAL",
    help="Add a trial with the values of this one, trained from the start; --set changes them.",
)
@options("set", "json")
@_without_collector()
def trials(
    pipeline: str,
    overrides: tuple[str, ...],
    json_lines: bool,
    run_name: str | None,
    stops: tuple[int, ...],
    adds: tuple[str, ...],
    clone: int | None,
    **exports: str | None,
) -> None:
    """Show the trials of a run's search, best first, and the winner; export them; or stop and add trials."""
    if stops or adds or clone is not None:
        if any(exports.values()):
            raise RayconteurError("trials: --stop, --add and --clone write no files; give --csv and the like alone")
        from workflows.runs.records import find_run

        finding = tuple(text for text in overrides if clone is None or _field(text) in _FIND_THE_RUN)
        requests = _requests(stops, adds, clone, [text for text in overrides if text not in finding])
        spec, store = open_pipeline(pipeline, finding)
        record = find_run("trials", store, spec.name, run_name)
        _steer(store, _key_of(spec, store, record), requests, json_lines)
        return
    from workflows.search.records import content_of
    from workflows.search.table import search_text

    spec, store = open_pipeline(pipeline, overrides)
    searches = find_searches(spec, store, run_name)
    if any(exports.values()):
        export(searches[-1], json_lines, **exports)
        return
    if not json_lines:
        click.echo("\n\n".join(map(search_text, searches)))
        return
    for search in searches:
        every, search.trials = search.trials, []
        content = {name: value for name, value in content_of(search).items() if name != "trials"}
        of = {"event": "trial", "pipeline": search.pipeline}
        lines = [json.dumps({**of, **content_of(trial)}) for trial in every]
        click.echo("\n".join([*lines, json.dumps({"event": "search", **content})]))


def _field(override: str) -> str:
    return override.partition("=")[0].strip()


def _requests(
    stops: tuple[int, ...], adds: tuple[str, ...], clone: int | None, changes: list[str]
) -> "list[SteeringRequest]":
    """What the options ask; raises SpecError."""
    from workflows.search.steering_requests import SteeringRequest
    from workflows.spec.read import parse_value

    found = [SteeringRequest(does="stop", trial=number) for number in stops]
    for text in adds:
        fields = _BETWEEN_FIELDS.split(text.strip())
        found.append(
            SteeringRequest(does="add", values=dict(parse_value(f"--add {field}", field) for field in fields))
        )
    if clone is not None:
        values = dict(parse_value(f"--set {text}", text) for text in changes)
        found.append(SteeringRequest(does="clone", trial=clone, values=values))
    return found


def _steer(store: "Store", key: str, requests: "list[SteeringRequest]", json_lines: bool) -> None:
    """Ask the driver of the search, and print its answers; exits with 1 if it refuses one."""
    from workflows.search.steering_requests import ask

    if store.find("tune", key) is not None:
        raise RayconteurError(
            f"trials: search {key} is complete; to go on with it, raise tune.trials and run it again"
        )
    answered = ask(store, key, requests, lambda words: click.echo(words, err=True))
    for request in answered:
        if json_lines:
            click.echo(json.dumps({"event": "refused" if request.is_refused else "steered", **request.to_json()}))
        else:
            words = f"refused: {_option(request)}: {request.answer}" if request.is_refused else request.answer
            click.echo(words, err=request.is_refused)
    if any(request.is_refused for request in answered):
        raise SystemExit(1)


def _option(request: "SteeringRequest") -> str:
    """The option that a request came from."""
    if request.does == "add":
        return f"--add {' '.join(f'{field}={json.dumps(value)}' for field, value in request.values.items())}"
    return f"--{request.does} {request.trial}"


def find_searches(spec: "PipelineSpec", store: "Store", run_name: str | None) -> list["Search"]:
    """The search of a run, after that of its `tune.proxy`, which alone is there while it runs."""
    from workflows.runs.state import examine
    from workflows.search.records import read_search
    from workflows.spec.space import proxy_pipeline

    try:
        found = find_search(spec, store, run_name)
    except RayconteurError:
        if run_name is not None or spec.tune is None or spec.tune.proxy is None:
            raise
        search = read_search(store, examine(proxy_pipeline(spec), store, "tune")[-1].key)
        if search is None:
            raise
        return [search]
    on_proxy = found.proxy and read_search(store, found.proxy.search)
    return [on_proxy, found] if on_proxy else [found]


def find_search(spec: "PipelineSpec", store: "Store", run_name: str | None) -> "Search":
    """The search of a run, by default of the pipeline's last run; raises RayconteurError if that run has none."""
    from workflows.runs.records import find_run
    from workflows.search.records import read_search

    record = find_run("trials", store, spec.name, run_name)
    search = read_search(store, _key_of(spec, store, record))
    if search is None:
        raise RayconteurError(f"trials: the search of run {record.run} has not begun; start it with rayconteur tune")
    return search


def _key_of(spec: "PipelineSpec", store: "Store", record: "RunRecord") -> str:
    """The key of the search that a run has completed or works on."""
    return record.key_of("tune") or record.begun.get("tune") or _key_in_progress(spec, store, record)


def _key_in_progress(spec: "PipelineSpec", store: "Store", record: "RunRecord") -> str:
    """The key of an unfinished search, from the pipeline file: for records of earlier versions, and for runs
    that have not come to their search.
    """
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
