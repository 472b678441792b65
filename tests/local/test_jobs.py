"""Pipelines as jobs: the commands against a Ray cluster with a dashboard."""

import asyncio
import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import aiohttp
import httpx
import psutil
import pytest
import yaml
from aiohttp import web
from openai import OpenAI
from ray.dashboard.modules.serve.sdk import ServeSubmissionClient
from stored import EVALUATED, OPTIMIZED, run_record

from workflows.cluster.connection import ENVIRONMENT
from workflows.cluster.ray_private import show_token
from workflows.store import Artifact, Store


@pytest.fixture(scope="module")
def address(free_port):
    """The dashboard of a separate cluster."""
    # Ray puts sockets below it, whose paths may have 107 bytes: the folders that pytest makes are too long.
    port, folder = free_port(), Path(tempfile.mkdtemp())
    words = [
        "--head", "--block", "--num-cpus", "4", "--node-ip-address", "127.0.0.1", "--port", str(free_port()),
        "--dashboard-port", str(port), "--dashboard-agent-listen-port", str(free_port()), "--temp-dir", str(folder),
    ]  # fmt: skip
    bin_folder = Path(sys.executable).parent
    path = f"{bin_folder}{os.pathsep}{os.environ['PATH']}"  # jobs call `python`
    with (folder / "log").open("w") as log:
        head = subprocess.Popen(
            [bin_folder / "ray", "start", *words],
            env={**os.environ, **ENVIRONMENT, "PATH": path}, stdout=log, stderr=subprocess.STDOUT,
        )  # fmt: skip
    try:
        while "Ray runtime started" not in (folder / "log").read_text():
            assert head.poll() is None, (folder / "log").read_text()
            time.sleep(0.2)
        yield f"http://127.0.0.1:{port}"
    finally:
        # `ray stop`, and `ray start --block` when it is stopped, wait half a minute for the agents.
        for process in [head, *psutil.Process(head.pid).children(recursive=True)]:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        head.wait(timeout=60)
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def command(address):
    """Run a job command to its end; returns its exit code and its output lines."""

    def run(*words):
        done = subprocess.run(
            [sys.executable, "-m", "workflows", *map(str, words), "--address", address],
            capture_output=True, text=True, timeout=300,
        )  # fmt: skip
        assert "Traceback" not in done.stdout + done.stderr
        return done.returncode, (done.stdout + done.stderr).splitlines()

    return run


@pytest.fixture
def file(tmp_path, tiny):
    """A pipeline file, with its data in the same folder."""

    def write(**fields):
        path = tmp_path / "p.yaml"
        tiny["data"]["sources"] = [{"path": "sums.jsonl.gz"}]
        path.write_text(yaml.safe_dump({**tiny, **fields}))
        return path

    return write


def test_a_job_is_shown_like_a_run_and_ends_like_one(command, file):
    path = file(name="short")
    code, lines = command("submit", path, "--to", "prepare")
    assert code == 0, lines
    assert lines[0].startswith("job rayconteur-short-")
    assert any(line.startswith("prepare   done in") and "conversations 107" in line for line in lines)
    code, lines = command("submit", path, "--to", "prepare", "--json")
    events = [json.loads(line) for line in lines]
    assert code == 0, lines
    assert [event["event"] for event in events] == ["note", "up_to_date", "note"]
    code, lines = command("jobs", "--json")
    assert [(job["pipeline"], job["status"]) for job in map(json.loads, lines)] == [("short", "SUCCEEDED")] * 2
    code, lines = command("logs", "short")
    assert json.loads(lines[-2])["event"] == "up_to_date"


@pytest.fixture
def proxy(address):
    """A proxy that wants a header and lets no websocket through; its address, and what it refused."""
    loop, refused = asyncio.new_event_loop(), []

    async def forward(request):
        if request.headers.get("X-Pass") != "let me in":
            return web.Response(status=403, text="no header")
        if "Upgrade" in request.headers:
            refused.append(request.path)
            return web.Response(status=400, text="no websockets")
        async with aiohttp.ClientSession() as session:
            content, headers = await request.read(), {"Content-Type": request.content_type}
            for name in ("Authorization", "X-Ray-Authorization"):
                headers |= {name: request.headers[name]} if name in request.headers else {}
            async with session.request(
                request.method, address + request.path_qs, data=content, headers=headers
            ) as answer:
                return web.Response(status=answer.status, body=await answer.read(), content_type=answer.content_type)

    async def start():
        app = web.Application(client_max_size=1 << 30)
        app.router.add_route("*", "/{path:.*}", forward)
        runner = web.AppRunner(app, shutdown_timeout=0.1)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        return runner

    threading.Thread(target=loop.run_forever, daemon=True).start()
    runner = asyncio.run_coroutine_threadsafe(start(), loop).result(30)
    yield f"http://127.0.0.1:{runner.addresses[0][1]}", refused
    asyncio.run_coroutine_threadsafe(runner.cleanup(), loop).result(30)
    loop.call_soon_threadsafe(loop.stop)


def test_a_job_through_a_proxy_with_data_that_git_ignores(file, proxy):
    (url, refused), path = proxy, file(name="proxied")
    (path.parent / ".gitignore").write_text("*\n")
    (path.parent / "data").mkdir()
    (path.parent / "data" / ".gitignore").write_text("*\n")
    (path.parent / "sums.jsonl.gz").rename(path.parent / "data" / "sums.jsonl.gz")
    words = [
        sys.executable,
        "-m",
        "workflows",
        "submit",
        path,
        "--set",
        "data.sources.0.path=data",
        "--to",
        "prepare",
    ]
    environment = {**os.environ, "RAY_JOB_HEADERS": "{}"}
    done = subprocess.run([*words, "--address", url], capture_output=True, text=True, timeout=300, env=environment)
    assert done.returncode == 1
    assert "give the header that it wants with --header" in done.stderr
    words += ["--address", url, "--header", "X-Pass: let me in"]
    done = subprocess.run(words, capture_output=True, text=True, timeout=300, env=environment)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "conversations 107" in done.stdout
    assert len(refused) == 1


@pytest.mark.slow
def test_a_failed_job_prints_why_and_exits_with_1(command, file):
    path = file(name="wrong")
    (path.parent / "sums.jsonl.gz").write_bytes(b"no gzip")
    code, lines = command("submit", path, "--to", "prepare")
    assert code == 1
    errors = [line for line in lines if line.startswith("error: ")]
    assert len(errors) == 1
    assert errors[0].startswith("error: data.sources.0.path: ")
    assert "sums.jsonl.gz" in errors[0]
    assert len([line for line in lines if line.startswith("job ")]) == 2  # submitted, failed


@pytest.mark.slow
def test_ctrl_c_leaves_the_job_which_is_found_again_and_stopped(command, file, address, tiny):
    tiny["train"] |= {"epochs": 900, "checkpoint_every_steps": 20}
    path = file(name="long")
    submit = [sys.executable, "-m", "workflows", "submit", path, "--to", "train", "--json", "--address", address]
    first = subprocess.Popen(submit, stdout=subprocess.PIPE, text=True)
    for line in first.stdout:
        if json.loads(line).get("held_out_loss"):  # a checkpoint exists
            break
    first.send_signal(signal.SIGINT)
    rest, _ = first.communicate(timeout=60)
    assert first.returncode == 130
    assert "keeps running; rayconteur attach" in json.loads(rest.splitlines()[-1])["text"]

    second = subprocess.Popen(submit, stdout=subprocess.PIPE, text=True)
    note = json.loads(second.stdout.readline())
    assert not note["new"]
    code, lines = command("submit", path, "--to", "train", "--set", "train.learning_rate=1e-4")
    assert code == 1
    assert "is already running with other settings" in lines[-1]

    code, lines = command("stop", "long")
    assert code == 0
    assert lines == [f"job {note['job']} is stopped: stopped"]
    second.communicate(timeout=60)
    assert second.returncode == 130

    third = subprocess.Popen(submit, stdout=subprocess.PIPE, text=True)
    assert json.loads(third.stdout.readline())["new"]
    resumed = 0
    began = time.monotonic()
    for line in third.stdout:
        resumed = json.loads(line).get("resumed_from_step", 0)
        if resumed or time.monotonic() - began > 400:
            break
    command("stop", "long")
    third.communicate(timeout=60)
    assert resumed >= 20


@pytest.mark.slow
def test_the_manifest_of_a_rayservice_serves_a_release_that_passed(address, free_port, tiny, tiny_llama, s3_uri):
    """Sends the config to the dashboard, as KubeRay's operator does; replicas copy the release from the store."""
    store, port = Store(s3_uri), free_port()
    store.add_folder(str(tiny_llama), "optimize", "r1", "model")
    for stage, key, figures in (("optimize", "r1", OPTIMIZED), ("evaluate", "e1", {**EVALUATED, "passed": False})):
        store.finish(Artifact(stage, key, "tiny", {"train": "t1"}, {}, {**figures, "verdict": "no better"}))
    store.write_run(run_record(pipeline="tiny", spec=tiny, stages={"optimize": {"key": "r1", "seconds": 1.0}}))
    manifest = yaml.safe_load((Path(__file__).parents[2] / "clusters" / "kuberay-service.yaml").read_text())
    config = yaml.safe_load(manifest["spec"]["serveConfigV2"])
    [application] = config["applications"]
    args = application["args"]
    args |= {"store": s3_uri, "serve": {**args["serve"], "cpus_per_replica": 1}}
    config |= {"proxy_location": "HeadOnly", "http_options": {"host": "127.0.0.1", "port": port}}
    show_token()
    dashboard = ServeSubmissionClient(address)

    def applied(**changes):
        args.update(changes)
        dashboard.deploy_applications(config)
        while (now := dashboard.get_serve_details()["applications"][application["name"]])["status"] == "DEPLOYING":
            time.sleep(0.5)
        return now

    try:
        assert "the store has no release 'r0'; it has: r1" in applied(release="r0")["message"]
        assert "r1 has not passed: no better" in applied(release="r1")["message"]
        store.finish(Artifact("evaluate", "e1", "tiny", {"train": "t1"}, {}, EVALUATED))
        assert applied()["status"] == "RUNNING"
        client = OpenAI(base_url=f"http://127.0.0.1:{port}/v1", api_key="none")
        said = {"model": "tiny", "messages": [{"role": "user", "content": "1+1?"}], "max_tokens": 8}
        assert client.chat.completions.create(**said).usage.completion_tokens > 0
        pieces = [chunk for chunk in client.chat.completions.create(**said, stream=True) if chunk.choices]
        assert len(pieces) > 1
        assert httpx.get(f"http://127.0.0.1:{port}/health").json()["release"] == "r1"
    finally:
        dashboard.delete_applications()
