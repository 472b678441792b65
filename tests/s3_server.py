"""An S3 server that can be unavailable for a while: it then answers every request with 503 Slow Down.

python tests/s3_server.py 198.18.7.10 5000 /shared/away       # unavailable while that file exists
"""

import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Lock, Thread
from typing import Any

from moto.server import DomainDispatcherApplication, create_backend_app
from werkzeug.serving import make_server

_SLOW_DOWN = b"<Error><Code>SlowDown</Code><Message>Please reduce your request rate.</Message></Error>"


class S3Server:
    """A server in a thread of this process, from `start` to `stop`."""

    def __init__(self, switch: Path, host: str = "127.0.0.1", port: int = 0) -> None:
        self._switch = switch
        self._moto = DomainDispatcherApplication(create_backend_app)
        self._server = make_server(host, port, self._answer, threaded=True)
        self.answered = self.refused = 0
        self.most_at_once = 0
        """requests, while it is slow"""
        self._waiting, self._counting = 0, Lock()
        self._delay_s = 0.0
        self.options = (
            f"?scheme=http&endpoint_override={host}:{self._server.port}&region=us-east-1&allow_bucket_creation=true"
        )
        """query string of a URI on this server"""

    def start(self) -> Thread:
        thread = Thread(target=self._server.serve_forever, daemon=True)
        thread.start()
        return thread

    def stop(self) -> None:
        self._server.shutdown()

    @contextmanager
    def away(self) -> Iterator[None]:
        self._switch.touch()
        try:
            yield
        finally:
            self._switch.unlink()

    @contextmanager
    def slow(self, delay_s: float) -> Iterator[None]:
        """Each answer takes so much longer."""
        self._delay_s, self.most_at_once = delay_s, 0
        try:
            yield
        finally:
            self._delay_s = 0.0

    def _answer(self, environment: dict[str, Any], start: Callable[..., Any]) -> Iterable[bytes]:
        if self._delay_s:
            with self._counting:
                self._waiting += 1
                self.most_at_once = max(self.most_at_once, self._waiting)
            time.sleep(self._delay_s)
            with self._counting:
                self._waiting -= 1
        if not self._switch.exists():
            self.answered += 1
            return self._moto(environment, start)
        self.refused += 1
        environment["wsgi.input"].read(int(environment.get("CONTENT_LENGTH") or 0))
        start("503 Slow Down", [("Content-Type", "application/xml"), ("Content-Length", str(len(_SLOW_DOWN)))])
        return [_SLOW_DOWN]


if __name__ == "__main__":
    S3Server(Path(sys.argv[3]), sys.argv[1], int(sys.argv[2])).start().join()
