"""The command line: `rayconteur`, or `python -m workflows`.

Heavy libraries are imported inside commands, so that `--help` and a mistake in a pipeline file are answered at once.
Exit codes: 0 done, 1 a stage failed, 2 a wrong command line or pipeline file, 130 stopped with Ctrl-C.
"""

import contextlib
import json
import signal
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import click

from workflows import cli_jobs, cli_keys, cli_trials, spec_file
from workflows.cli_options import answering_errors, json_option, open_pipeline, options

if TYPE_CHECKING:
    import ssl

    from workflows.progress import Progress
    from workflows.spec import PipelineSpec
    from workflows.store import Artifact, Store

_KEY_IS_KNOWN_S = 30.0


def main() -> None:
    """The installed command."""
    command(prog_name="rayconteur")


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="rayconteur")
def command() -> None:
    """From raw conversations to an autoscaling chat endpoint, on a Ray cluster, with one command.

    A PIPELINE is one YAML file; `rayconteur spec` lists all its fields.

    Stages: prepare, reference (for dpo, kto and distill), tune (for a search), train, evaluate, optimize, deploy.
    What is up to date is not done again, and a run that was interrupted goes on where it was.
    """


@command.command()
@click.option("--exit-after-reply", is_flag=True, help="Ask the endpoint one question, print its reply, and stop.")
@options("to", "set", "force", "insecure", "json")
def run(
    pipeline: str,
    overrides: tuple[str, ...],
    force: bool,
    insecure: bool,
    json_lines: bool,
    last: str,
    exit_after_reply: bool,
) -> None:
    """Run all stages of PIPELINE that are not up to date, and serve until Ctrl-C."""
    _run_to(last, pipeline, overrides, force, json_lines, insecure, exit_after_reply)


@command.command()
@click.option(
    "--cluster", "cluster_file", type=click.Path(dir_okay=False), metavar="FILE",
    help="Does it fit on a cluster started from FILE, of `ray up` or KubeRay?",
)  # fmt: skip
@options("set", "insecure", "json")
def plan(
    pipeline: str, overrides: tuple[str, ...], insecure: bool, json_lines: bool, cluster_file: str | None
) -> None:
    """Say what a run would do and need, and what would end it; changes nothing. Exit code 1 if something would."""
    from workflows.deploy import check_certificate, living_endpoint
    from workflows.pipeline import examine
    from workflows.plan import plan_of, plan_text

    spec, store = open_pipeline(pipeline, overrides, may_be_open=insecure)
    if not cluster_file:  # else it is a file of another machine
        check_certificate(spec.serve)
    states = examine(spec, store)
    endpoint = living_endpoint(spec, store, states[-1].key) is not None
    if spec.cluster.address is None or cluster_file:
        result = plan_of(spec, store, states, endpoint, cluster_file)
    else:
        from workflows.cluster import Connection

        with Connection(spec.cluster) as connection:
            connection.open()
            result = plan_of(spec, store, states, endpoint)
    click.echo(json.dumps(result) if json_lines else plan_text(result))
    if result["troubles"]:
        raise SystemExit(1)


@command.command()
@click.option("--show", type=click.IntRange(1, 1000), help="Print so many conversations, the supervised part marked.")
@options("set", "json")
def prepare(pipeline: str, overrides: tuple[str, ...], json_lines: bool, show: int | None) -> None:
    """Conversations to token shards (Ray Data)."""
    _run_to("prepare", pipeline, overrides, False, json_lines)
    if show:
        from workflows.pipeline import examine
        from workflows.show import show_conversations

        spec, store = open_pipeline(pipeline, overrides)
        show_conversations(spec, store, examine(spec, store)[0].key, show, json_lines)


@command.command()
@options("set", "json")
def reference(pipeline: str, overrides: tuple[str, ...], json_lines: bool) -> None:
    """Values that dpo, kto and distill learn against (Ray Data)."""
    _run_to("reference", pipeline, overrides, False, json_lines)


@command.command()
@options("set", "json")
def tune(pipeline: str, overrides: tuple[str, ...], json_lines: bool) -> None:
    """Search over settings of train (Ray Tune)."""
    _run_to("tune", pipeline, overrides, False, json_lines)


@command.command()
@options("set", "json")
def train(pipeline: str, overrides: tuple[str, ...], json_lines: bool) -> None:
    """Corpus to checkpoint (Ray Train, DeepSpeed)."""
    _run_to("train", pipeline, overrides, False, json_lines)


@command.command()
@options("set", "json")
def evaluate(pipeline: str, overrides: tuple[str, ...], json_lines: bool) -> None:
    """Checkpoint to scorecard, tuned against base (Ray Data)."""
    _run_to("evaluate", pipeline, overrides, False, json_lines)


@command.command()
@options("set", "force", "json")
def optimize(pipeline: str, overrides: tuple[str, ...], force: bool, json_lines: bool) -> None:
    """Checkpoint to release."""
    _run_to("optimize", pipeline, overrides, force, json_lines)


@command.command()
@options("set", "force", "insecure", "json")
def deploy(pipeline: str, overrides: tuple[str, ...], force: bool, insecure: bool, json_lines: bool) -> None:
    """Release to endpoint, after the stages before it (Ray Serve)."""
    _run_to("deploy", pipeline, overrides, force, json_lines, insecure)


@command.command()
@options("set", "json")
def runs(pipeline: str, overrides: tuple[str, ...], json_lines: bool) -> None:
    """List the runs in PIPELINE's store."""
    from workflows.show import runs_text

    _, store = open_pipeline(pipeline, overrides)
    records = store.runs()
    if json_lines:
        for record in records:
            click.echo(json.dumps(record))
    else:
        click.echo(runs_text(records))


@command.command()
@click.option("--run", "run_name", metavar="RUN", help="Which run, as `runs` names them; the last one if left out.")
@click.option("--output", type=click.Path(dir_okay=False), help="The file; RUN.html in this folder if left out.")
@options("set", "json")
def report(
    pipeline: str, overrides: tuple[str, ...], json_lines: bool, run_name: str | None, output: str | None
) -> None:
    """Write a run of PIPELINE as one HTML page: figures, forms of the release, scorecard, curves."""
    from workflows.report import write_report

    spec, store = open_pipeline(pipeline, overrides)
    file, record = write_report(store, spec.name, run_name, output)
    click.echo(json.dumps({"event": "report", "run": record["run"], "file": str(file)}) if json_lines else str(file))


@command.command()
@json_option
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
# Not from OPENAI_API_KEY too: that one would go out, in plain text, to any URL that is given here.
@click.option("--key", envvar="RAYCONTEUR_API_KEY", help="API key; better in the variable RAYCONTEUR_API_KEY.")
@answering_errors
def chat(url: str, key: str | None) -> None:
    """Talk to the endpoint at URL."""
    from serve.client import chat_in_terminal

    chat_in_terminal(url, key=key)


command.add_command(cli_keys.keys)
command.add_command(cli_trials.trials)
for job_command in cli_jobs.COMMANDS:
    command.add_command(job_command)


def _run_to(
    last: str,
    pipeline: str,
    overrides: tuple[str, ...],
    force: bool,
    json_lines: bool,
    insecure: bool = False,
    exit_after_reply: bool = False,
) -> None:
    spec, store = open_pipeline(pipeline, overrides, may_be_open=insecure or last != "deploy")
    from workflows.deploy import check_certificate
    from workflows.pipeline import run_stages
    from workflows.progress import Progress

    if last == "deploy":
        check_certificate(spec.serve)
    # An end by SIGTERM is like Ctrl-C: what was started is taken down.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    with Progress(json_lines) as progress:
        connection = _LazyConnection(spec, store)
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

    def __init__(self, spec: "PipelineSpec", store: "Store") -> None:
        self._spec = spec
        self._store = store
        self._connection: Any = None

    @property
    def is_open(self) -> bool:
        return self._connection is not None

    def open(self, stages: Sequence[str]) -> None:
        """Connect, and see whether the cluster has room for these stages; raises ClusterError."""
        if self._connection is not None:
            return
        if {"tune", "train"} & {*stages}:
            from workflows.foresight import troubles

            if found := troubles(self._spec):
                raise ValueError("\n".join(found))
        from workflows.cluster import Connection, check_fits

        self._connection = Connection(self._spec.cluster)
        self._connection.open()
        if self._spec.cluster.address is not None:
            from workflows.reach import check_reach

            check_reach(self._spec, self._store)
        check_fits(self._spec, stages)

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
        connection.open(["deploy"])
        endpoint = deployment.deploy(spec, store, done, progress)
    else:
        progress.finish("deploy", endpoint.figures, word="up to date")
    url = str(endpoint.figures["url"])
    progress.result("endpoint", endpoint.figures, f"chat page: {url}/\n{deployment.curl_line(endpoint)}")
    if not deployment.someone_may_ask(spec, store):
        progress.note("nobody may ask it yet: `rayconteur keys create PIPELINE NAME` makes a key")
    if exit_after_reply:
        with deployment.own_key(spec, store) as key:
            _ask_once(url, str(endpoint.figures["model"]), key, progress, deployment.trust_of(spec.serve))
    elif already:
        progress.note("nothing to do")
    elif spec.cluster.address is None:
        progress.note("serving until Ctrl-C")
        with contextlib.suppress(KeyboardInterrupt):
            while True:
                time.sleep(3600)
        progress.note("the endpoint is stopped")


def _ask_once(
    url: str, model: str, key: str | None, progress: "Progress", verify: "ssl.SSLContext | bool" = True
) -> None:
    question = "Hello! What can you help me with?"
    pieces = _reply_once_the_key_is_known(url, model, key, question, verify)
    progress.result(
        "reply",
        {"question": question, "reply": "".join(pieces), "pieces": len(pieces)},
        f"asked over HTTP: {question}\nreply in {len(pieces)} streamed pieces: {''.join(pieces)}",
    )


def _reply_once_the_key_is_known(
    url: str, model: str, key: str | None, question: str, verify: "ssl.SSLContext | bool"
) -> list[str]:
    """The reply in pieces; the key is new, and each replica reads the store some seconds after the other."""
    from serve.client import EndpointError, stream_reply

    messages = [{"role": "user", "content": question}]
    until = time.monotonic() + _KEY_IS_KNOWN_S
    while True:
        try:
            return list(stream_reply(url, messages, model, key, verify, temperature=0, max_tokens=60))
        except EndpointError as error:
            if error.status != 401 or key is None or time.monotonic() > until:
                raise
        time.sleep(0.5)
