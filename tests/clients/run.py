"""Run the clients' usages against our endpoints and write docs/clients.md.

python tests/clients/run.py                          all of clients.toml, at all endpoints
python tests/clients/run.py openai-npm --at torch    one client at one endpoint; other lines stay unchanged
"""

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from endpoint import ENDPOINTS
from installed import USAGES, Client, clients
from table import write_table

from models.files import cache_folder

_HERE = Path(__file__).parent
_MAX_SECONDS = 1800
# Turns off telemetry and downloads of clients.
_UNTOLD = {
    "OPENAI_AGENTS_DISABLE_TRACING": "1", "LITELLM_LOCAL_MODEL_COST_MAP": "True", "HF_HUB_OFFLINE": "1",
    "LANGSMITH_TRACING": "false", "HAYSTACK_TELEMETRY_ENABLED": "False", "DO_NOT_TRACK": "1",
}  # fmt: skip
Lines = dict[str, dict[str, Any]]
RESULTS = cache_folder() / "clients" / "results.json"


@contextmanager
def endpoint(name: str, *options: str) -> Iterator[tuple[str, str]]:
    """The URL of an endpoint in its own process, and the folder of its model."""
    environment = {**os.environ, "PYTHONPATH": str(_HERE.parent.parent)}
    command = [sys.executable, str(_HERE / "endpoint.py"), name, *options]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment)
    assert process.stdin
    assert process.stdout
    try:
        url = next((line.strip() for line in process.stdout if line.startswith("http")), "")
        if not url:
            raise SystemExit(f"the endpoint {name} did not start")
        yield url, process.stdout.readline().strip()
    finally:
        process.stdin.close()
        try:
            process.wait(60)
        except subprocess.TimeoutExpired:
            process.kill()


def tried(client: Client, url: str, at: str, folder: str) -> Lines:
    """The outcome of each usage, by its name; a script that crashed has its own line."""
    environment = {
        **os.environ,
        "PYTHONPATH": str(USAGES / "common"),
        **_UNTOLD,
        "ENGINE": at,
        "MODEL_FOLDER": folder,
    }
    found: Lines = {}
    for script in client.scripts:
        command = client.command(script, url)
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=_MAX_SECONDS, env=environment)
        except subprocess.TimeoutExpired as late:
            found[script.name] = {"works": False, "said": f"not done after {late.timeout:.0f} s", "seconds": 0}
            continue
        lines = [json.loads(line) for line in done.stdout.splitlines() if line.startswith('{"usage"')]
        found |= {line.pop("usage"): line for line in lines}
        if done.returncode or not lines:
            said = done.stderr.strip().splitlines()[-1:] or ["nothing"]
            found[script.name] = {"works": False, "said": said[0], "seconds": 0}
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    known = {client.name: client for client in clients()}
    parser.add_argument("clients", nargs="*", metavar="CLIENT", help=f"of {', '.join(known)}")
    parser.add_argument("--at", nargs="+", choices=ENDPOINTS, default=list(ENDPOINTS))
    parser.add_argument("--layers", default="2", help="of the model on torch; 0: all of them, which takes an hour")
    asked = parser.parse_args()
    if unknown := set(asked.clients) - known.keys():
        parser.error(f"no such client: {', '.join(sorted(unknown))}; there are {', '.join(known)}")
    chosen = [known[name] for name in asked.clients or known]
    results = json.loads(RESULTS.read_text()) if RESULTS.is_file() else {}
    for name in asked.at:
        with endpoint(name, "--layers", asked.layers) as (url, folder):
            for client in chosen:
                client.install()
                found = tried(client, url, name, folder)
                works = sum(line["works"] for line in found.values())
                print(f"{name}: {client.name}: {works} of {len(found)}", flush=True)
                results.setdefault(client.name, {})[name] = found
                RESULTS.write_text(json.dumps(results, indent=1))
    unexplained = write_table(list(known.values()), results)
    for line in unexplained:
        print(f"does not work, and tests/clients/verdicts.toml does not say who is right: {line}")
    sys.exit(bool(unexplained))


if __name__ == "__main__":
    main()
