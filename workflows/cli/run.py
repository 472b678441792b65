"""Run stages from the terminal, up to a last one; then serve the endpoint until Ctrl-C."""

import contextlib
import signal
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from models.errors import RayconteurError
from workflows.cli.options import open_pipeline

if TYPE_CHECKING:
    import ssl

    from workflows.progress import Progress
    from workflows.spec import PipelineSpec
    from workflows.store import Artifact, Store


_KEY_IS_KNOWN_S = 30.0


def run_to(
    last: str,
    pipeline: str,
    overrides: tuple[str, ...],
    force: bool,
    json_lines: bool,
    insecure: bool = False,
    exit_after_reply: bool = False,
) -> None:
    spec, store = open_pipeline(pipeline, overrides, may_be_open=insecure or last != "deploy")
    from workflows.endpoint.status import check_certificate
    from workflows.progress import Progress
    from workflows.runs.run import run_stages

    if last == "deploy":
        check_certificate(spec.serve)
    # SIGTERM acts like Ctrl-C: it shuts down everything that the run started.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    with Progress(json_lines) as progress:
        connection = _LazyConnection(spec, store)
        try:
            done = run_stages(spec, store, progress, last, connection.open, force)
            if last == "deploy":
                is_new = "deploy" in connection.stages
                _serve(spec, store, done["deploy"], progress, is_new, exit_after_reply)
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
        self.stages: Sequence[str] = ()
        """those that it was opened for"""

    @property
    def is_open(self) -> bool:
        return self._connection is not None

    def open(self, stages: Sequence[str]) -> None:
        """Connect, and check that the cluster has the capacity for these stages; raises ClusterError."""
        if self._connection is not None:
            return
        if {"tune", "train"} & {*stages}:
            from workflows.training.foresight import troubles

            if found := troubles(self._spec):
                raise RayconteurError("\n".join(found))
        from workflows.cluster.connection import Connection
        from workflows.cluster.workers import check_fits

        self.stages, self._connection = stages, Connection(self._spec.cluster)
        self._connection.open()
        if self._spec.cluster.address is not None:
            from workflows.cluster.reach import check_reach

            check_reach(self._spec, self._store)
        check_fits(self._spec, stages)

    def close(self) -> None:
        if self._connection is not None:
            self._connection.__exit__()


def _serve(
    spec: "PipelineSpec",
    store: "Store",
    deployed: "Artifact",
    progress: "Progress",
    is_new: bool,
    exit_after_reply: bool,
) -> None:
    """Show the endpoint and, if this run has started it, keep it until Ctrl-C."""
    from workflows.endpoint.status import curl_line, own_key, someone_may_ask, trust_of
    from workflows.figures import DeployFigures

    endpoint = DeployFigures.from_json(deployed.figures)
    text = f"chat page: {endpoint.url}/\n{curl_line(endpoint, spec.serve)}"
    progress.result("endpoint", endpoint.to_json(), text)
    if not someone_may_ask(spec, store):
        progress.note("there is no API key yet; create one with `rayconteur keys create PIPELINE NAME`")
    if exit_after_reply:
        with own_key(spec, store) as key:
            ask_once(endpoint.url, endpoint.model, key, progress, trust_of(spec.serve))
    elif not is_new:
        progress.note("nothing to do")
    elif spec.cluster.address is None:
        progress.note("serving until Ctrl-C")
        with contextlib.suppress(KeyboardInterrupt):
            while True:
                time.sleep(3600)
        progress.note("the endpoint is stopped")


def ask_once(
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
    """The reply in pieces. The key is new, and each replica rereads the store at its own time, so a 401 is
    retried."""
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
