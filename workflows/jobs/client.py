"""Run a pipeline as a job on a Ray cluster (Ray Jobs): submit, find, follow and stop jobs.

    jobs = Jobs("http://head:8265")
    job, is_new = jobs.submit(spec, beside=Path("."), last="deploy")
    for line in jobs.follow(job.id): ...

A job's driver runs on the cluster's head, so the loss of another node does not end it. Ray keeps the list of jobs;
the store keeps their results.
"""

import json
import logging
import socket
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name

from workflows.cluster.connection import api_server_address
from workflows.cluster.errors import ClusterError
from workflows.cluster.ray_private import show_token
from workflows.jobs.errors import UnknownJob, not_supported, why_no_answer
from workflows.jobs.log import JobLog
from workflows.jobs.package import about, archive, left_behind, missing, pack, pinned, supported_ray
from workflows.record import JsonObject, Record
from workflows.spec import PipelineSpec
from workflows.store import content_key, without_secrets

_PING_TIMEOUT_S = 10.0

# A cluster that has just started accepts jobs within this time.
_STARTS_WITHIN_S = 60.0

# Runs on the cluster as a small job, to describe the Python that jobs get there.
_PROBE = (
    "import importlib.metadata as m, json, platform, sys; "
    "print(json.dumps({'python': platform.python_version(), 'executable': sys.executable, "
    "'packages': {d.metadata['Name']: d.version for d in m.distributions() if d.metadata['Name']}}))"
)
_PROBE_TIMEOUT_S = 120.0


@dataclass(frozen=True)
class Job:
    """A job that `submit` started, as Ray reports it."""

    id: str
    pipeline: str
    store: str
    to: str
    """the last stage to run"""
    settings: str
    """a hash of the pipeline's settings and files, and of `to`"""
    status: str
    """PENDING, RUNNING, SUCCEEDED, FAILED or STOPPED"""
    started: str
    ended: str | None
    message: str
    exit_code: int | None

    @property
    def is_over(self) -> bool:
        return self.status in ("SUCCEEDED", "FAILED", "STOPPED")


@dataclass(frozen=True, kw_only=True)
class ClusterPython(Record):
    """The Python that jobs get on a cluster; what `_PROBE` prints."""

    python: str
    """its version"""
    executable: str
    packages: Mapping[str, str]
    """name -> version"""


class Jobs:
    """The jobs of a cluster."""

    def __init__(self, address: str, headers: Mapping[str, str] | None = None, ca_bundle: str | None = None) -> None:
        """Connect to the dashboard at `address`; raises ClusterError if none answers or its Ray is not supported.

        `headers` go with every request, for a proxy before the dashboard; `ca_bundle` has the certificates to trust.
        """
        from workflows.jobs.patient_client import PatientClient

        self.address = address
        logging.disable(logging.WARNING)  # Ray's warnings about packages and sockets
        show_token()
        try:
            with api_server_address(address):  # else RAY_ADDRESS goes before it
                self._client = PatientClient(address, headers=dict(headers or {}), verify=ca_bundle or True)
        except Exception as error:
            raise ClusterError(why_no_answer(address, error)) from None
        self._ray_version = str(self._client._server_ray_version)
        if not supported_ray().contains(self._ray_version, prereleases=True):
            raise ClusterError(not_supported(address, f"Ray {self._ray_version}"))

    def submit(
        self,
        spec: PipelineSpec,
        beside: Path,
        last: str,
        force: bool = False,
        insecure: bool = False,
        say: Callable[[str], None] = lambda text: None,
    ) -> tuple[Job, bool]:
        """Start a run of `spec` up to the stage `last` as a job; uploads its files in the folder `beside`.

        Returns the job and True; if the same run is already in progress, its job and False. Raises ClusterError, and
        StageFailed for a file that cannot be uploaded.
        """
        words = ["run", "pipeline.yaml", "--json", "--to", last]
        words += ["--force"] * force + ["--insecure"] * insecure
        store = without_secrets(spec.store)
        with tempfile.TemporaryDirectory() as folder:
            settings = content_key({"packed": pack(spec, beside, Path(folder, "job")), "words": words})
            mine = [job for job in self.all() if (job.pipeline, job.store) == (spec.name, store)]
            if at_work := next((job for job in mine if not job.is_over), None):
                return self._same(at_work, settings), False
            for note in left_behind(spec, beside):
                say(note)
            environment = self._environment(say)
            # The same id for two simultaneous submissions, so that Ray refuses one of them.
            job_id = f"rayconteur-{spec.name}-{content_key({'store': store})[:6]}-{len(mine) + 1}"
            try:
                self._asked(
                    "submit_job",
                    entrypoint=f"python -u -m workflows {' '.join(words)}",
                    submission_id=job_id,
                    # As an archive: from a folder, Ray leaves out what a .gitignore in it names.
                    runtime_env={"working_dir": str(archive(Path(folder, "job"))), **environment},
                    metadata={
                        "rayconteur": about()["Version"], "pipeline": spec.name, "store": store, "to": last,
                        "settings": settings, "from": socket.gethostname(),
                    },
                )  # fmt: skip
            except ClusterError as error:
                if "already exists" not in str(error):
                    raise
                return self._same(self.find(job_id), settings), False
        return self.find(job_id), True

    def all(self) -> list[Job]:
        """The jobs that `submit` started, oldest first."""
        found = [
            self._job(details) for details in self._asked("list_jobs") if "rayconteur" in (details.metadata or {})
        ]
        return sorted(found, key=lambda job: job.started)

    def find(self, name: str) -> Job:
        """A job by its id, or a pipeline's latest job by the pipeline's name; raises ClusterError."""
        jobs = self.all()
        named = [job for job in jobs if job.id == name] or [job for job in jobs if job.pipeline == name]
        if not named:
            known = ", ".join(job.id for job in jobs) or "none yet"
            raise UnknownJob(f"no job or pipeline {name!r} on the cluster at {self.address}; its jobs: {known}")
        return named[-1]

    def follow(self, job_id: str) -> Iterator[str]:
        """Every line of a job's output from its start, until the job ends; raises ClusterError.

        Reconnects after a lost connection; fails if the cluster does not answer for a minute. Reads the log over
        plain HTTP where a proxy lets no websocket through.
        """
        log = JobLog(
            self.address,
            job_id,
            tail=lambda: self._client.tail_job_logs(job_id),
            whole=lambda: str(self._asked("get_job_logs", job_id)),
            is_over=lambda: self.find(job_id).is_over,
            ping=self._ping,
        )
        yield from log.lines()

    def log(self, job_id: str) -> list[str]:
        """Every line of a job's output so far."""
        return str(self._asked("get_job_logs", job_id)).splitlines()

    def stop(self, job_id: str) -> Job:
        """Stop a job and wait until it has ended."""
        self._asked("stop_job", job_id)
        while not (job := self.find(job_id)).is_over:
            time.sleep(0.5)
        return job

    def _same(self, at_work: Job, settings: str) -> Job:
        if at_work.settings != settings:
            raise ClusterError(
                f"pipeline {at_work.pipeline} is already running with other settings, as job {at_work.id}; wait for "
                f"it (`rayconteur attach {at_work.id}`) or stop it (`rayconteur stop {at_work.id}`)"
            )
        return at_work

    def _environment(self, say: Callable[[str], None]) -> JsonObject:
        """The packages that the cluster must install for a job; empty if its Python has all. Raises ClusterError."""
        there = self._probe()
        if not SpecifierSet(about()["Requires-Python"]).contains(there.python):
            raise ClusterError(not_supported(self.address, f"Python {there.python}"))
        packages: dict[str, str] = {canonicalize_name(name): version for name, version in there.packages.items()}
        if packages.get("ray") != self._ray_version:
            raise ClusterError(
                f"`python` on the head of the cluster at {self.address} is {there.executable}, with Ray "
                f"{packages.get('ray', 'missing')}, but the cluster runs Ray {self._ray_version}, from an "
                "environment that is not on the PATH; start Ray with that environment's bin folder first on the PATH"
            )
        lacking = missing(packages)
        if not lacking:
            return {}
        say(
            f"the cluster's Python lacks {', '.join(lacking)}; installing this machine's package versions for the "
            "job, which takes minutes, once on each node"
        )
        return {"pip": {"packages": pinned(), "pip_check": False}, "config": {"setup_timeout_seconds": 3600}}

    def _probe(self) -> ClusterPython:
        job_id = self._asked("submit_job", entrypoint=f'python -c "{_PROBE}"',
                             submission_id=f"probe-{uuid.uuid4().hex[:8]}")  # fmt: skip
        until = time.monotonic() + _PROBE_TIMEOUT_S
        while not (status := self._asked("get_job_status", job_id)).is_terminal() and time.monotonic() < until:
            time.sleep(0.2)
        log = str(self._asked("get_job_logs", job_id))
        found = [line for line in log.splitlines() if line.startswith("{")]
        if not found:
            raise ClusterError(
                f"the cluster at {self.address} cannot run jobs: a test job ended with {status}: {log[-500:]}"
            )
        self._asked("delete_job", job_id)
        return ClusterPython.from_json(json.loads(found[-1]))

    def _ping(self) -> None:
        """Raise ClusterError if the dashboard does not answer in time."""
        try:
            self._client._do_request("GET", "/api/version", timeout=_PING_TIMEOUT_S)
        except Exception as error:
            raise ClusterError(why_no_answer(self.address, error)) from None

    def _asked(self, what: str, *arguments: Any, **named: Any) -> Any:
        began = time.monotonic()
        while True:
            try:
                return getattr(self._client, what)(*arguments, **named)
            except Exception as error:
                # Ray's error until the head's agent, which starts jobs, is up.
                if "No available agent" in str(error) and time.monotonic() - began < _STARTS_WITHIN_S:
                    time.sleep(1.0)
                    continue
                raise ClusterError(why_no_answer(self.address, error)) from None

    def _job(self, details: Any) -> Job:
        facts = details.metadata
        return Job(
            id=details.submission_id,
            pipeline=facts["pipeline"],
            store=facts["store"],
            to=facts["to"],
            settings=facts["settings"],
            status=str(details.status.value),
            started=_time(details.start_time) or "",
            ended=_time(details.end_time),
            message=details.message or "",
            exit_code=details.driver_exit_code,
        )


def _time(milliseconds: int | None) -> str | None:
    if not milliseconds:
        return None
    return datetime.fromtimestamp(milliseconds / 1000, UTC).isoformat(timespec="seconds")
