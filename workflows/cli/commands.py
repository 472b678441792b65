"""The command line: `rayconteur`, or `python -m workflows`.

Commands import heavy libraries when they run, so `--help` and a mistake in a pipeline file get an answer at once.
Exit codes: 0 done, 1 a stage failed, 2 a mistake in the command line or pipeline file, 130 stopped with Ctrl-C.
"""

import json

import click

from workflows.cli import jobs as cli_jobs
from workflows.cli import keys as cli_keys
from workflows.cli import trials as cli_trials
from workflows.cli.options import answering_errors, json_option, open_pipeline, options
from workflows.cli.run import run_to


def main() -> None:
    """The entry point of the installed command `rayconteur`."""
    command(prog_name="rayconteur")


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="rayconteur")
def command() -> None:
    """From raw conversations to an autoscaling chat endpoint, on a Ray cluster, with one command.

    PIPELINE is a YAML file; `rayconteur spec` lists all its fields.

    Stages: prepare, reference (for objectives that need it), tune (for a search), train, evaluate, optimize, deploy.
    A run skips stages that are up to date, and resumes where an interrupted run stopped.
    """


@command.command()
@click.option("--exit-after-reply", is_flag=True, help="Send the endpoint one question, print the reply, exit.")
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
    """Run all stages not up to date, then serve until Ctrl-C."""
    run_to(last, pipeline, overrides, force, json_lines, insecure, exit_after_reply)


@command.command()
@click.option(
    "--cluster", "cluster_file", type=click.Path(dir_okay=False), metavar="FILE",
    help="Check against the cluster that FILE describes, for `ray up` or KubeRay.",
)  # fmt: skip
@options("set", "insecure", "json")
def plan(
    pipeline: str, overrides: tuple[str, ...], insecure: bool, json_lines: bool, cluster_file: str | None
) -> None:
    """Show what a run would do and what it needs. Changes nothing; exits with 1 if the run would fail."""
    from workflows.endpoint.status import check_certificate
    from workflows.runs.plan import plan_of, plan_text
    from workflows.runs.state import examine

    spec, store = open_pipeline(pipeline, overrides, may_be_open=insecure)
    if not cluster_file:  # with one, the certificate is a file of another machine
        check_certificate(spec.serve)
    states = examine(spec, store)
    if spec.cluster.address is None or cluster_file:
        result = plan_of(spec, store, states, cluster_file)
    else:
        from workflows.cluster.connection import Connection

        with Connection(spec.cluster) as connection:
            connection.open()
            result = plan_of(spec, store, states)
    click.echo(json.dumps(result.to_json()) if json_lines else plan_text(result))
    if result.will_fail:
        raise SystemExit(1)


@command.command()
@click.option("--show", type=click.IntRange(1, 1000), help="Print this many conversations, supervised text marked.")
@options("set", "json")
def prepare(pipeline: str, overrides: tuple[str, ...], json_lines: bool, show: int | None) -> None:
    """Convert conversations to token shards (Ray Data)."""
    run_to("prepare", pipeline, overrides, False, json_lines)
    if show:
        from workflows.corpus.show import show_conversations
        from workflows.runs.state import examine

        spec, store = open_pipeline(pipeline, overrides)
        show_conversations(spec, store, examine(spec, store, "prepare")[0].key, show, json_lines)


@command.command()
@options("set", "json")
def inspect(pipeline: str, overrides: tuple[str, ...], json_lines: bool) -> None:
    """Show what the conversations are, by source: lengths, languages, duplicates, private details. Runs prepare."""
    run_to("prepare", pipeline, overrides, False, json_lines)
    from workflows.corpus.inspection.tally import read_inspection
    from workflows.corpus.inspection.text import inspection_text
    from workflows.runs.state import examine

    spec, store = open_pipeline(pipeline, overrides)
    key = examine(spec, store, "prepare")[0].key
    found = read_inspection(store, key)
    if found is None:  # an earlier version has prepared the corpus
        store.clear("prepare", key)
        run_to("prepare", pipeline, overrides, False, json_lines)
        found = read_inspection(store, key)
    assert found is not None
    click.echo(json.dumps({"event": "inspection", **found.to_json()}) if json_lines else inspection_text(found))


@command.command()
@options("set", "json")
def reference(pipeline: str, overrides: tuple[str, ...], json_lines: bool) -> None:
    """Compute the reference values that some objectives learn against (Ray Data)."""
    run_to("reference", pipeline, overrides, False, json_lines)


@command.command()
@options("set", "json")
def tune(pipeline: str, overrides: tuple[str, ...], json_lines: bool) -> None:
    """Run a hyperparameter search over `train` (Ray Tune)."""
    run_to("tune", pipeline, overrides, False, json_lines)


@command.command()
@options("set", "json")
def train(pipeline: str, overrides: tuple[str, ...], json_lines: bool) -> None:
    """Train a checkpoint (Ray Train, DeepSpeed)."""
    run_to("train", pipeline, overrides, False, json_lines)


@command.command()
@options("set", "json")
def evaluate(pipeline: str, overrides: tuple[str, ...], json_lines: bool) -> None:
    """Compare the checkpoint with its base model (Ray Data)."""
    run_to("evaluate", pipeline, overrides, False, json_lines)


@command.command()
@options("set", "force", "json")
def optimize(pipeline: str, overrides: tuple[str, ...], force: bool, json_lines: bool) -> None:
    """Convert the checkpoint to a release."""
    run_to("optimize", pipeline, overrides, force, json_lines)


@command.command()
@options("set", "force", "insecure", "json")
def deploy(pipeline: str, overrides: tuple[str, ...], force: bool, insecure: bool, json_lines: bool) -> None:
    """Serve the release at an endpoint (Ray Serve). Runs the stages before it first."""
    run_to("deploy", pipeline, overrides, force, json_lines, insecure)


@command.command()
@options("set", "json")
def runs(pipeline: str, overrides: tuple[str, ...], json_lines: bool) -> None:
    """List the runs in PIPELINE's store."""
    from workflows.runs.records import runs_text

    _, store = open_pipeline(pipeline, overrides)
    records = store.runs()
    if json_lines:
        for record in records:
            click.echo(json.dumps(record.to_json()))
    else:
        click.echo(runs_text(records))


@command.command()
@click.option("--run", "run_name", metavar="RUN", help="The run, by its name in `runs`; defaults to the last run.")
@click.option(
    "--compare", "others", multiple=True, metavar="RUN",
    help="Write a page that compares the run with this one instead. Repeatable.",
)  # fmt: skip
@click.option("--output", type=click.Path(dir_okay=False), help="The output file; defaults to RUN.html here.")
@options("set", "json")
def report(
    pipeline: str,
    overrides: tuple[str, ...],
    json_lines: bool,
    run_name: str | None,
    others: tuple[str, ...],
    output: str | None,
) -> None:
    """Write an HTML report of a run: verdict, replies, curves, data, settings; or compare runs."""
    from workflows.runs.page.report import write_comparison, write_report

    spec, store = open_pipeline(pipeline, overrides)
    event: dict[str, object] = {"event": "report"}
    if others:
        file, records = write_comparison(store, spec.name, others, run_name, output)
        event |= {"run": records[-1].run, "compared_with": [record.run for record in records[:-1]]}
    else:
        file, record = write_report(store, spec.name, run_name, output)
        event |= {"run": record.run}
    click.echo(json.dumps({**event, "file": str(file)}) if json_lines else str(file))


@command.command()
@click.option("--markdown", is_flag=True, help="Print a Markdown page, as in docs/fields.md.")
@json_option
def spec(json_lines: bool, markdown: bool) -> None:
    """Print all pipeline fields: types, bounds, defaults, meaning."""
    from dataclasses import asdict

    from workflows.spec.describe import all_fields, fields_page

    if markdown:
        click.echo(fields_page(), nl=False)
        return
    for row in all_fields():
        if json_lines:
            click.echo(json.dumps(asdict(row)))
        else:
            click.echo(f"{row.path}  ({row.type}; {row.default})\n    {row.description}")


@command.command()
@click.argument("url", default="http://127.0.0.1:8000")
# Does not read OPENAI_API_KEY: it would send that key, in plain text, to any URL given here.
@click.option("--key", envvar="RAYCONTEUR_API_KEY", help="API key; prefer the variable RAYCONTEUR_API_KEY.")
@answering_errors
def chat(url: str, key: str | None) -> None:
    """Chat with the endpoint at URL."""
    from serve.client import chat_in_terminal

    chat_in_terminal(url, key=key)


command.add_command(cli_keys.keys)
command.add_command(cli_trials.trials)
for job_command in cli_jobs.COMMANDS:
    command.add_command(job_command)
