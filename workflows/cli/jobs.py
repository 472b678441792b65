"""Commands that run pipelines as jobs on a Ray cluster: submit, jobs, attach, logs, stop."""

import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import click

from workflows.cli.options import answering_errors, json_option, options
from workflows.spec.read import read_spec

if TYPE_CHECKING:
    from workflows.jobs.client import Job, Jobs
    from workflows.progress import Progress

_address = click.option(
    "--address", envvar="RAY_API_SERVER_ADDRESS", default="http://127.0.0.1:8265", show_default=True,
    help="URL of the Ray dashboard on the cluster's head; also read from RAY_API_SERVER_ADDRESS.",
)  # fmt: skip
_job = click.argument("job", metavar="JOB")


@click.command()
@_address
@click.option("--detach", is_flag=True, help="Start the job and return.")
@options("to", "set", "force", "insecure", "json")
def submit(
    pipeline: str,
    overrides: tuple[str, ...],
    force: bool,
    insecure: bool,
    json_lines: bool,
    address: str,
    last: str,
    detach: bool,
) -> None:
    """Run PIPELINE as a job on a Ray cluster, and follow it.

    Uploads the code and the small files beside PIPELINE; the cluster must be able to reach the data and the store.
    Ctrl-C leaves the job running. Submitting PIPELINE again while it runs follows the same job.
    """
    spec = read_spec(pipeline, list(overrides), may_be_open=insecure or last != "deploy", for_job=True)
    from workflows.jobs.client import Jobs
    from workflows.progress import Progress

    with Progress(json_lines) as progress:
        jobs = Jobs(address)
        job, is_new = jobs.submit(spec, Path(pipeline).resolve().parent, last, force, insecure, progress.note)
        word = "submitted to" if is_new else "already running on"
        progress.note(f"job {job.id}: {word} {address}", job=job.id, new=is_new)
        if detach:
            progress.note(f"rayconteur attach {job.id} follows it, rayconteur stop {job.id} stops it")
        else:
            _follow(jobs, job, progress)


@click.command()
@_address
@json_option
@answering_errors
def jobs(address: str, json_lines: bool) -> None:
    """List the jobs that `submit` started."""
    from workflows.jobs.client import Jobs

    found = Jobs(address).all()
    if json_lines:
        for job in found:
            click.echo(json.dumps(asdict(job)))
        return
    from workflows.progress import table_text

    headings = ("job", "pipeline", "to", "status", "started", "ended")
    rows = [(job.id, job.pipeline, job.to, job.status.lower(), job.started, job.ended or "") for job in found]
    click.echo(table_text(headings, rows) if found else "no jobs yet")


@click.command()
@_address
@json_option
@_job
@answering_errors
def attach(job: str, address: str, json_lines: bool) -> None:
    """Follow JOB until it ends. JOB is a job id, or a pipeline name for its latest job."""
    from workflows.jobs.client import Jobs
    from workflows.progress import Progress

    with Progress(json_lines) as progress:
        jobs = Jobs(address)
        _follow(jobs, jobs.find(job), progress)


@click.command()
@_address
@click.option("-f", "--follow", is_flag=True, help="Keep printing until the job ends.")
@_job
@answering_errors
def logs(job: str, address: str, follow: bool) -> None:
    """Print the raw output of JOB. JOB is a job id, or a pipeline name for its latest job."""
    from workflows.jobs.client import Jobs

    jobs = Jobs(address)
    found = jobs.find(job)
    for line in jobs.follow(found.id) if follow else jobs.log(found.id):
        click.echo(line)


@click.command()
@_address
@json_option
@_job
@answering_errors
def stop(job: str, address: str, json_lines: bool) -> None:
    """Stop JOB; the same submit resumes it. JOB is a job id, or a pipeline name for its latest job."""
    from workflows.jobs.client import Jobs

    jobs = Jobs(address)
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
