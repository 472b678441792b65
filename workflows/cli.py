"""The command line: `rayconteur`, or `python -m workflows`.

Heavy libraries are imported inside commands, so that `--help` and a mistake in a pipeline file are answered at once.
Exit codes: 0 done, 1 a stage failed, 2 a wrong command line or pipeline file, 130 stopped with Ctrl-C.
"""

import contextlib
import functools
import json
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import click

from workflows import spec_file
from workflows.spec_file import SpecError, read_spec

if TYPE_CHECKING:
    from workflows.progress import Progress
    from workflows.spec import PipelineSpec
    from workflows.store import Artifact, Store

_STAGES = ["prepare", "reference", "train", "evaluate", "optimize", "deploy"]


def main() -> None:
    """The installed command."""
    command(prog_name="rayconteur")


def _options(*names: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """The argument PIPELINE and the options that commands share."""
    shared = {
        "set": click.option(
            "--set", "overrides", multiple=True, metavar="FIELD=VALUE",
            help="Override a field by its dotted path, as in train.learning_rate=2e-4. May be repeated.",
        ),
        "json": click.option("--json", "json_lines", is_flag=True, help="Print JSON lines for machines."),
        "force": click.option("--force", is_flag=True, help="Deploy even if the scorecard did not pass."),
    }  # fmt: skip

    def decorate(function: Callable[..., Any]) -> Callable[..., Any]:
        for name in reversed(names):
            function = shared[name](function)
        return click.argument("pipeline", type=click.Path(dir_okay=False))(_answering_errors(function))

    return decorate


def _answering_errors(function: Callable[..., Any]) -> Callable[..., Any]:
    """Errors that are the user's to mend as sentences on stderr, with an exit code; never a traceback."""

    @functools.wraps(function)
    def answer(*args: Any, **options: Any) -> None:
        json_lines = bool(options.get("json_lines"))
        try:
            function(*args, **options)
        except SpecError as error:
            for problem in error.problems:
                _complain(str(problem), json_lines)
            sys.exit(2)
        except KeyboardInterrupt:
            _complain("stopped; the same command goes on from here", json_lines)
            sys.exit(130)
        except ValueError as error:
            _complain(str(error), json_lines)
            sys.exit(1)
        except BrokenPipeError:  # `| head` has seen enough
            sys.stdout = open(os.devnull, "w")  # noqa: SIM115 (for what Python flushes at its end)
            sys.exit(0)
        except OSError as error:
            _complain(f"{error}; check the path, the permissions and the space left, then run it again", json_lines)
            sys.exit(1)
        except Exception as error:
            file = _write_traceback()
            _complain(f"unexpected {type(error).__name__}: {error} (details in {file})", json_lines)
            sys.exit(1)

    return answer


def _complain(text: str, json_lines: bool) -> None:
    click.echo(json.dumps({"event": "error", "text": text}) if json_lines else f"error: {text}", err=not json_lines)


def _write_traceback() -> str:
    import tempfile

    with tempfile.NamedTemporaryFile("w", prefix="rayconteur-", suffix=".log", delete=False) as file:
        file.write(traceback.format_exc())
    return file.name


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="rayconteur")
def command() -> None:
    """From raw conversations to an autoscaling chat endpoint, on a Ray cluster, with one command.

    A PIPELINE is one YAML file; `rayconteur spec` lists all its fields.

    Stages: prepare, reference (for dpo, kto and distill), train, evaluate, optimize, deploy. What is up to date is
    not done again, and a run that was interrupted goes on where it was.
    """


@command.command()
@click.option("--to", "last", type=click.Choice(_STAGES), default="deploy", help="Stop after this stage.")
@click.option("--exit-after-reply", is_flag=True, help="Ask the endpoint one question, print its reply, and stop.")
@_options("set", "force", "json")
def run(
    pipeline: str, overrides: tuple[str, ...], force: bool, json_lines: bool, last: str, exit_after_reply: bool
) -> None:
    """Run all stages of PIPELINE that are not up to date, and serve until Ctrl-C."""
    _run_to(last, pipeline, overrides, force, json_lines, exit_after_reply)


@command.command()
@_options("set", "json")
def plan(pipeline: str, overrides: tuple[str, ...], json_lines: bool) -> None:
    """Say what a run would do and need. Changes nothing."""
    from workflows.deploy import living_endpoint
    from workflows.pipeline import examine
    from workflows.plan import plan_of, plan_text

    spec, store = _open(pipeline, overrides)
    states = examine(spec, store)
    endpoint = living_endpoint(spec, store, states[-1].key) is not None
    if spec.cluster.address is None:
        result = plan_of(spec, store, states, endpoint)
    else:
        from workflows.cluster import Connection

        with Connection(spec.cluster) as connection:
            connection.open()
            result = plan_of(spec, store, states, endpoint)
    click.echo(json.dumps(result) if json_lines else plan_text(result))


@command.command()
@click.option("--show", type=click.IntRange(1, 1000), help="Print so many conversations, the supervised part marked.")
@_options("set", "json")
def prepare(pipeline: str, overrides: tuple[str, ...], json_lines: bool, show: int | None) -> None:
    """Conversations to token shards (Ray Data)."""
    _run_to("prepare", pipeline, overrides, False, json_lines)
    if show:
        from workflows.pipeline import examine
        from workflows.show import show_conversations

        spec, store = _open(pipeline, overrides)
        show_conversations(spec, store, examine(spec, store)[0].key, show, json_lines)


@command.command()
@_options("set", "json")
def reference(pipeline: str, overrides: tuple[str, ...], json_lines: bool) -> None:
    """Values that dpo, kto and distill learn against (Ray Data)."""
    _run_to("reference", pipeline, overrides, False, json_lines)


@command.command()
@_options("set", "json")
def train(pipeline: str, overrides: tuple[str, ...], json_lines: bool) -> None:
    """Corpus to checkpoint (Ray Train, DeepSpeed)."""
    _run_to("train", pipeline, overrides, False, json_lines)


@command.command()
@_options("set", "json")
def evaluate(pipeline: str, overrides: tuple[str, ...], json_lines: bool) -> None:
    """Checkpoint to scorecard, tuned against base (Ray Data)."""
    _run_to("evaluate", pipeline, overrides, False, json_lines)


@command.command()
@_options("set", "force", "json")
def optimize(pipeline: str, overrides: tuple[str, ...], force: bool, json_lines: bool) -> None:
    """Checkpoint to release."""
    _run_to("optimize", pipeline, overrides, force, json_lines)


@command.command()
@_options("set", "force", "json")
def deploy(pipeline: str, overrides: tuple[str, ...], force: bool, json_lines: bool) -> None:
    """Release to endpoint, after the stages before it (Ray Serve)."""
    _run_to("deploy", pipeline, overrides, force, json_lines)


@command.command()
@_options("set", "json")
def runs(pipeline: str, overrides: tuple[str, ...], json_lines: bool) -> None:
    """List the runs in PIPELINE's store."""
    from workflows.show import runs_text

    _, store = _open(pipeline, overrides)
    records = store.runs()
    if json_lines:
        for record in records:
            click.echo(json.dumps(record))
    else:
        click.echo(runs_text(records))


@command.command()
@click.option("--run", "run_name", metavar="RUN", help="Which run, as `runs` names them; the last one if left out.")
@click.option("--output", type=click.Path(dir_okay=False), help="The file; RUN.html in this folder if left out.")
@_options("set", "json")
def report(
    pipeline: str, overrides: tuple[str, ...], json_lines: bool, run_name: str | None, output: str | None
) -> None:
    """Write a run of PIPELINE as one HTML page: figures, forms of the release, scorecard, curves."""
    from workflows.report import write_report

    spec, store = _open(pipeline, overrides)
    file, record = write_report(store, spec.name, run_name, output)
    click.echo(json.dumps({"event": "report", "run": record["run"], "file": str(file)}) if json_lines else str(file))


@command.command()
@click.option("--json", "json_lines", is_flag=True, help="Print JSON lines for machines.")
def spec(json_lines: bool) -> None:
    """All fields of a pipeline file: types, bounds, defaults, meaning."""
    from dataclasses import asdict

    for row in spec_file.reference():
        if json_lines:
            click.echo(json.dumps(asdict(row)))
        else:
            click.echo(f"{row.path}  ({row.type}; {row.default})\n    {row.description}")


@command.command()
@click.argument("url", default="http://127.0.0.1:8000")
@_answering_errors
def chat(url: str) -> None:
    """Talk to the endpoint at URL."""
    from serve.client import chat_in_terminal

    chat_in_terminal(url)


def _open(pipeline: str, overrides: tuple[str, ...]) -> "tuple[PipelineSpec, Store]":
    spec = read_spec(pipeline, list(overrides))
    from workflows.store import Store

    return spec, Store(spec.store)


def _run_to(
    last: str,
    pipeline: str,
    overrides: tuple[str, ...],
    force: bool,
    json_lines: bool,
    exit_after_reply: bool = False,
) -> None:
    spec, store = _open(pipeline, overrides)
    from workflows.pipeline import run_stages
    from workflows.progress import Progress

    # An end by SIGTERM is like Ctrl-C: what was started is taken down.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    with Progress(json_lines) as progress:
        connection = _LazyConnection(spec)
        try:
            done = run_stages(spec, store, progress, last, connection.open, force)
            if last == "deploy":
                _serve(spec, store, done, progress, connection, force, exit_after_reply)
            elif not connection.is_open:
                progress.note("nothing to do")
        finally:
            connection.close()


class _LazyConnection:
    """Imports Ray only when a stage has to run."""

    def __init__(self, spec: "PipelineSpec") -> None:
        self._spec = spec
        self._connection: Any = None

    @property
    def is_open(self) -> bool:
        return self._connection is not None

    def open(self) -> None:
        if self._connection is None:
            from workflows.cluster import Connection

            self._connection = Connection(self._spec.cluster)
        self._connection.open()

    def close(self) -> None:
        if self._connection is not None:
            self._connection.__exit__()


def _serve(
    spec: "PipelineSpec",
    store: "Store",
    done: "dict[str, Artifact]",
    progress: "Progress",
    connection: _LazyConnection,
    force: bool,
    exit_after_reply: bool,
) -> None:
    from workflows import deploy as deployment

    deployment.check_passed(done["evaluate"], force)
    endpoint = deployment.living_endpoint(spec, store, done["optimize"].key)
    already = endpoint is not None
    if endpoint is None:
        connection.open()
        endpoint = deployment.deploy(spec, store, done, progress)
    else:
        progress.finish("deploy", endpoint.figures, word="up to date")
    url = str(endpoint.figures["url"])
    progress.result("endpoint", endpoint.figures, f"chat page: {url}/\n{deployment.curl_line(endpoint)}")
    if exit_after_reply:
        _ask_once(url, str(endpoint.figures["model"]), progress)
    elif already:
        progress.note("nothing to do")
    elif spec.cluster.address is None:
        progress.note("serving until Ctrl-C")
        with contextlib.suppress(KeyboardInterrupt):
            while True:
                time.sleep(3600)
        progress.note("the endpoint is stopped")


def _ask_once(url: str, model: str, progress: "Progress") -> None:
    from serve.client import stream_reply

    question = "Hello! What can you help me with?"
    pieces = list(
        stream_reply(url, [{"role": "user", "content": question}], model=model, temperature=0, max_tokens=60)
    )
    progress.result(
        "reply",
        {"question": question, "reply": "".join(pieces), "pieces": len(pieces)},
        f"asked over HTTP: {question}\nreply in {len(pieces)} streamed pieces: {''.join(pieces)}",
    )
