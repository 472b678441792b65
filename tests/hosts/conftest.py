"""Several hosts on one machine: network namespaces, created by the script that RAYCONTEUR_HOSTS names."""

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock

from models.files import cache_folder

REPO = Path(__file__).resolve().parents[2]


class Hosts:
    """h0 is a laptop, h1 the head, h2 and up are workers; `off` cuts a host's power."""

    def __init__(self, script: str, shared: Path) -> None:
        self._script = script
        self.shared = shared
        cache = cache_folder()  # with DeepSpeed's operator: compiling it on all hosts at once takes minutes
        cache.mkdir(parents=True, exist_ok=True)
        self._cache = cache
        self.settings = f"RAYCONTEUR_CACHE={cache}"
        """environment variables for all commands"""
        self._environment = {
            **os.environ,
            "VENV": sys.prefix,
            "SHARE": f"{REPO} {shared} {cache}",
            "HOSTS": str(shared / "h"),
        }

    def call(self, *words: str, **options: Any) -> str:
        """Run `hosts.sh`; returns its output."""
        done = subprocess.run(
            [self._script, *words], env=self._environment, capture_output=True, text=True, timeout=300, **options
        )
        assert done.returncode == 0, f"{words}: {done.stdout[-2000:]}{done.stderr[-2000:]}"
        return done.stdout

    def sh(self, host: str, command: str) -> str:
        """Run a command on a host; returns its output."""
        return self.call("sh", host, f"{self.settings} {command}")

    def own_caches(self, hosts: tuple[str, ...]) -> None:
        """Give each of these hosts its own cache, which contains only DeepSpeed's operator."""
        for host in hosts:
            self.sh(host, f"bash -c 'mkdir -p cache && cp -a {self._cache}/operators cache'")
        self.settings = "RAYCONTEUR_CACHE=/root/cache"

    def begin(self, host: str, command: str, output: Path) -> subprocess.Popen[bytes]:
        """Start a command on a host; its output goes to a file."""
        return subprocess.Popen(
            [self._script, "sh", host, f"{self.settings} {command}"],
            env=self._environment, stdout=output.open("wb"), stderr=subprocess.STDOUT,
        )  # fmt: skip

    @staticmethod
    def events(output: Path) -> list[dict[str, Any]]:
        """The events that a run with --json has printed."""
        lines = output.read_text(errors="replace").splitlines()
        return [json.loads(line) for line in lines if line.startswith("{")]

    def wait_for(
        self, output: Path, what: str, is_there: Callable[[dict[str, Any]], bool], seconds: float = 240
    ) -> float:
        """Wait for an event in a run's output that `is_there` accepts; returns the seconds."""
        began = time.monotonic()
        while time.monotonic() - began < seconds:
            if any(is_there(event) for event in self.events(output)[-3:]):
                return time.monotonic() - began
            time.sleep(0.2)
        raise AssertionError(f"{what}: not within {seconds} s; last events: {self.events(output)[-3:]}")

    def start_ray(self, host: str, cpus: int = 1, gpus: int = 0) -> None:
        """Start Ray on a host: the head without CPUs, or a worker; its GPUs are only declared."""
        here = f"--node-ip-address 198.18.7.{10 + int(host[1:])}"
        head = "--head --num-cpus 0 --dashboard-host 0.0.0.0"
        to = head if host == "h1" else f"--address 198.18.7.11:6379 --num-cpus {cpus} --num-gpus {gpus}"
        settings = "RAY_worker_niceness=0 RAY_TRAIN_HEALTH_CHECK_INTERVAL_S=0.5"
        self.sh(host, f"{settings} ray start {to} {here} --object-store-memory 200000000")


@pytest.fixture
def bare_hosts(tmp_path: Path) -> Iterator[Hosts]:
    """Five hosts, without Ray."""
    script = os.environ.get("RAYCONTEUR_HOSTS")
    programs = [shutil.which(name) for name in ("ip", "sshd", "ssh", "rsync")]
    if script is None or os.geteuid() != 0 or None in programs:
        pytest.skip("needs root, iproute2, openssh-server, rsync, and RAYCONTEUR_HOSTS: a script that makes hosts")
    found = Hosts(script, tmp_path)
    with FileLock(Path(tempfile.gettempdir()) / "rayconteur-hosts.lock"):  # the hosts' names are the machine's
        found.call("up", "5")
        try:
            yield found
        finally:
            found.call("down")


@pytest.fixture
def hosts(bare_hosts: Hosts) -> Hosts:
    """Five hosts, Ray on the head and three workers."""
    for host in ("h1", "h2", "h3", "h4"):
        bare_hosts.start_ray(host)
    return bare_hosts
