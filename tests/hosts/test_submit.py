"""From a laptop: `ray up` on idle machines, a submitted pipeline, its endpoint, `ray down`."""

import json
import time
from pathlib import Path

import pytest
import yaml

CLUSTERS = Path(__file__).parents[2] / "clusters"


@pytest.fixture
def launched(bare_hosts):
    """Starts the head with clusters/on-prem.yaml, filled in with these machines; yields the dashboard's URL."""
    file = bare_hosts.shared / "cluster.yaml"
    content = yaml.safe_load((CLUSTERS / "on-prem.yaml").read_text().replace("192.0.2.", "198.18.7."))
    content["available_node_types"]["local.cluster.node"]["resources"] = {"CPU": 2}
    content["auth"]["ssh_user"] = "root"
    content["idle_timeout_minutes"] = 1
    # No setup commands: all hosts share one installation.
    content |= {"file_mounts": {}, "head_setup_commands": [], "worker_setup_commands": []}
    file.write_text(yaml.safe_dump(content))
    bare_hosts.sh("h0", f"RAY_UP_enable_autoscaler_v2=0 ray up -y {file}")
    dashboard = bare_hosts.begin("h0", f"ray dashboard {file}", bare_hosts.shared / "dashboard")
    time.sleep(5)
    yield bare_hosts
    dashboard.terminate()
    bare_hosts.sh("h0", f"ray down -y {file}")
    assert "198.18.7.11" not in bare_hosts.sh("h1", "pgrep -af gcs_server || true")


def nodes(hosts):
    """The addresses of the live nodes, as the head reports them."""
    script = (
        "import ray, json; ray.init('auto', logging_level=50, log_to_driver=False); print(json.dumps(ray.nodes()))"
    )
    found = json.loads(hosts.sh("h1", f'python -c "{script}" 2>/dev/null').splitlines()[-1])
    return {node["NodeManagerAddress"] for node in found if node["Alive"]}


def test_from_a_laptop_to_an_endpoint_and_back_to_none(launched, sums_file, tiny):
    store, output, file = launched.shared / "store", launched.shared / "output", launched.shared / "p" / "p.yaml"
    file.parent.mkdir()
    sums_file.rename(file.parent / "sums.jsonl.gz")
    tiny |= {"store": str(store), "data": {"sources": [{"path": "sums.jsonl.gz"}]}}
    tiny["evaluate"] |= {"gate": {"min_loss_reduction": -1.0}}
    file.write_text(yaml.safe_dump(tiny))
    assert nodes(launched) == {"198.18.7.11"}

    began = time.monotonic()
    left, attached = launched.shared / "left", launched.shared / "attached"
    assert launched.begin("h0", f"timeout -s INT 40 rayconteur submit {file} --json", left).wait(timeout=100) == 124
    assert "keeps running; rayconteur attach" in launched.events(left)[-1]["text"]
    submitted = launched.begin("h0", f"rayconteur submit {file} --json", output)
    attaching = launched.begin("h0", "rayconteur attach tiny --json", attached)
    assert submitted.wait(timeout=1500) == 0, output.read_text()[-3000:]
    assert attaching.wait(timeout=60) == 0
    assert [launched.events(file)[0]["new"] for file in (left, output)] == [True, False]
    assert launched.events(attached)[-1] == launched.events(output)[-1]
    print(f"submitted and served after {time.monotonic() - began:.0f} s")
    events = launched.events(output)
    done = [event["stage"] for event in events if event["event"] == "done"]
    assert done == ["prepare", "train", "evaluate", "optimize", "deploy"]
    assert nodes(launched) > {"198.18.7.11"}  # workers have started

    url = next(event["url"] for event in events if event["event"] == "endpoint")
    asked = json.dumps({"model": "tiny", "max_tokens": 4, "messages": [{"role": "user", "content": "1+1?"}]})
    ask = f"curl -s {url}/v1/chat/completions -H 'content-type: application/json' -d '{asked}'"
    reply = json.loads(launched.sh("h1", ask))
    assert reply.get("usage", {}).get("completion_tokens", 0) > 0, reply

    assert "up to date" in launched.sh("h0", f"rayconteur submit {file}")
    assert launched.sh("h0", "rayconteur jobs").count("succeeded") == 2

    began = time.monotonic()
    while len(nodes(launched)) > 2 and time.monotonic() - began < 240:
        time.sleep(5)
    assert len(nodes(launched)) == 2  # the head, and the worker with the endpoint's replica
    print(f"the idle worker was let go {time.monotonic() - began:.0f} s later")
