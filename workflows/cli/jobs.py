"""Commands that run pipelines as jobs on a Ray cluster: submit, jobs, attach, logs, stop."""

import functools
import json
import os
import sys
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from workflows.cli.options import answering_errors, json_option, options
from workflows.spec.read import read_spec

if TYPE_CHECKING:
    from workflows.jobs.client import Job, Jobs
    from workflows.progress import Progress


@dataclass(frozen=True)
class Dashboard:
    """Where the jobs' commands find the cluster, and what they send along."""

    address: str
    headers: Mapping[str, str]
    ca_bundle: str | None

    def jobs(self) -> "Jobs":
        """Connect; raises ClusterError."""
        from workflows.jobs.client import Jobs

        return Jobs(self.address, self.headers, self.ca_bundle)


def _with_dashboard(function: Callable[..., Any]) -> Callable[..., Any]:
    """The options of the connection, as the argument `dashboard`."""

    @click.option(
        "--address", envvar="RAY_API_SERVER_ADDRESS", default="http://127.0.0.1:8265", show_default=True,
        help="URL of the Ray dashboard on the cluster's head; also read from RAY_API_SERVER_ADDRESS.",
    )  # fmt: skip
    @click.option(
        "--header", "headers", multiple=True, metavar="'NAME: VALUE'",
        help="Header for a proxy before the dashboard. Repeatable; also read from RAY_JOB_HEADERS, a JSON object.",
    )  # fmt: skip
    @click.option(
        "--ca-bundle", envvar=["REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE", "SSL_CERT_FILE"], type=click.Path(exists=True),
        help="Certificates to trust, a file or folder; also read from REQUESTS_CA_BUNDLE and SSL_CERT_FILE.",
    )  # fmt: skip
    @functools.wraps(function)
    def call(*args: Any, address: str, headers: tuple[str, ...], ca_bundle: str | None, **options: Any) -> Any:
        return function(*args, dashboard=Dashboard(address, _headers(headers), ca_bundle), **options)

    return call


def _headers(given: tuple[str, ...]) -> dict[str, str]:
    """The headers of the environment and the command line; an error does not show their values."""
    try:
        found = json.loads(os.environ.get("RAY_JOB_HEADERS") or "{}")
    except ValueError:
        found = None
    if not isinstance(found, dict) or not all(isinstance(value, str) for value in found.values()):
        raise click.UsageError('RAY_JOB_HEADERS must be a JSON object of strings, such as {"Authorization": "..."}')
    for header in given:
        name, colon, value = header.partition(":")
        if not colon or not name.strip():
            raise click.UsageError("--header must be 'NAME: VALUE', as in --header 'Authorization: Bearer ...'")
        found[name.strip()] = value.strip()
    return found


_job = click.argument("job", metavar="JOB")


@click.command()
@_with_dashboard
@click.option("--detach", is_flag=True, help="Start the job and return.")
@options("to", "set", "force", "insecure", "json")
def submit(
    pipeline: str,
    overrides: tuple[str, ...],
    force: bool,
    insecure: bool,
    json_lines: bool,
    dashboard: Dashboard,
    last: str,
    detach: bool,
) -> None:
    """Run PIPELINE as a job on a Ray cluster, and follow it.

    Uploads the code and the small files beside PIPELINE; the cluster must be able to reach the data and the store.
    Ctrl-C leaves the job running. Submitting PIPELINE again while it runs follows the same job.
    """
    spec = read_spec(pipeline, list(overrides), may_be_open=insecure or last != "deploy", for_job=True)
    from workflows.progress import Progress

    with Progress(json_lines) as progress:
        jobs = dashboard.jobs()
        job, is_new = jobs.submit(spec, Path(pipeline).resolve().parent, last, force, insecure, progress.note)
        word = "submitted to" if is_new else "already running on"
        progress.note(f"job {job.id}: {word} {jobs.address}", job=job.id, new=is_new)
        if detach:
            progress.note(f"rayconteur attach {job.id} follows it, rayconteur stop {job.id} stops it")
        else:
            _follow(jobs, job, progress)


@click.command()
@_with_dashboard
@json_option
@answering_errors
def jobs(dashboard: Dashboard, json_lines: bool) -> None:
    """List the jobs that `submit` started."""
    found = dashboard.jobs().all()
    if json_lines:
        for job in found:
            click.echo(json.dumps(asdict(job)))
        return
    from workflows.progress import table_text

    headings = ("job", "pipeline", "to", "status", "started", "ended")
    rows = [(job.id, job.pipeline, job.to, job.status.lower(), job.started, job.ended or "") for job in found]
    click.echo(table_text(headings, rows) if found else "no jobs yet")


@click.command()
@_with_dashboard
@json_option
@_job
@answering_errors
def attach(job: str, dashboard: Dashboard, json_lines: bool) -> None:
    """Follow JOB until it ends. JOB is a job id, or a pipeline name for its latest job."""
    from workflows.progress import Progress

    with Progress(json_lines) as progress:
        jobs = dashboard.jobs()
        _follow(jobs, jobs.find(job), progress)


@click.command()
@_with_dashboard
@click.option("-f", "--follow", is_flag=True, help="Keep printing until the job ends.")
@_job
@answering_errors
def logs(job: str, dashboard: Dashboard, follow: bool) -> None:
    """Print the raw output of JOB. JOB is a job id, or a pipeline name for its latest job."""
    jobs = dashboard.jobs()
    found = jobs.find(job)
    for line in jobs.follow(found.id) if follow else jobs.log(found.id):
        click.echo(line)


@click.command()
@_with_dashboard
@json_option
@_job
@answering_errors
def stop(job: str, dashboard: Dashboard, json_lines: bool) -> None:
    """Stop JOB; the same submit resumes it. JOB is a job id, or a pipeline name for its latest job."""
    jobs = dashboard.jobs()
    found = jobs.find(job)
    word = "has already ended"
    if not found.is_over:
        found, word = jobs.stop(found.id), "is stopped"
    click.echo(json.dumps(asdict(found)) if json_lines else f"job {found.id} {word}: {found.status.lower()}")


COMMANDS = (submit, jobs, attach, logs, stop)


def _follow(jobs: "Jobs", job: "Job", progress: "Progress") -> None:
    """Show a job until it ends, then exit with its exit code."""
    from workflows.jobs.display import JobDisplay

    replay = JobDisplay(progress)
    try:
        for line in jobs.follow(job.id):
            replay.take(line)
    except KeyboardInterrupt:
        progress.note(
            f"job {job.id} keeps running; rayconteur attach {job.id} --address {jobs.address} follows it, rayconteur "
            f"stop {job.id} stops it"
        )
        sys.exit(130)
    job = jobs.find(job.id)
    if job.status == "SUCCEEDED":
        return
    if job.status == "STOPPED":
        progress.note(f"job {job.id} was stopped; submit it again to resume")
        sys.exit(130)
    for line in [] if replay.said_why else [*replay.other, job.message]:
        click.echo(line, err=True)
    progress.note(f"job {job.id} failed")
    sys.exit(job.exit_code or 1)
