"""GuideLLM's benchmarks over HTTP; small ones, because only its requests are under test."""

import json
import subprocess
import sys
import tempfile
from pathlib import Path

from trial import Endpoint, run_all, usage

SYNTHETIC = "kind=synthetic_text,prompt_tokens=16,output_tokens=6"
# Its first requests come before it counts any.
ENOUGH = "kind=max_requests,count=4"


def run(
    endpoint: Endpoint, backend: str = "", profile: str = "synchronous", data: str = SYNTHETIC, limit: str = ENOUGH
) -> None:
    """Must complete requests without a failure; replies have the requested number of tokens."""
    report = Path(tempfile.mkdtemp()) / "report.json"
    command = [
        str(Path(sys.executable).parent / "guidellm"), "run",
        "--backend", f"kind=openai_http,target={endpoint.root},model={endpoint.model}{backend}",
        "--profile", f"kind={profile}", "--constraint", limit, "--data", data,
        "--tokenizer", f"kind=hf_auto,model={endpoint.folder}",
        "--output", f"kind=json,path={report}", "--disable-console-interactive",
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, (done.stderr or done.stdout)[-500:]
    for benchmark in json.loads(report.read_text())["benchmarks"]:
        totals = benchmark["metrics"]["request_totals"]
        errors = [request.get("info", {}).get("error") for request in benchmark["requests"].get("errored", [])]
        assert totals["successful"], f"none was done: {errors[:1]}"
        assert not totals["errored"], errors[0]


@usage("chats, synthetic texts, one at a time")
def _(endpoint: Endpoint) -> None:
    run(endpoint)


@usage("completions")
def _(endpoint: Endpoint) -> None:
    run(endpoint, backend=",request_format=/v1/completions")


@usage("responses")
def _(endpoint: Endpoint) -> None:
    run(endpoint, backend=",request_format=/v1/responses")


@usage("without streams")
def _(endpoint: Endpoint) -> None:
    run(endpoint, backend=",stream=false")


@usage("concurrent, 3 at once")
def _(endpoint: Endpoint) -> None:
    run(endpoint, profile="concurrent,streams=3", limit="kind=max_requests,count=9")


@usage("throughput")
def _(endpoint: Endpoint) -> None:
    run(endpoint, profile="throughput,max_concurrency=4", limit="kind=max_requests,count=9")


@usage("constant rate")
def _(endpoint: Endpoint) -> None:
    run(endpoint, profile="constant,rate=0.5")


@usage("chats of several turns")
def _(endpoint: Endpoint) -> None:
    run(endpoint, data=f"{SYNTHETIC},turns=2")


@usage("texts of a file")
def _(endpoint: Endpoint) -> None:
    file = Path(tempfile.mkdtemp()) / "texts.jsonl"
    lines = [
        {"prompt": f"Tell me about {thing}", "output_tokens_count": 5} for thing in ("snow", "bread", "chess", "rain")
    ]
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    run(endpoint, data=f"kind=json_file,path={file}")


run_all()
