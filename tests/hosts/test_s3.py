"""A store on an S3 server and no shared folder: each machine copies what it needs."""

import itertools
import json
import time
from pathlib import Path

import yaml

SERVER = "198.18.7.10"
PORT = 5055
HEAD = "http://198.18.7.11:8265"
AWAY_S = 30


def test_a_pipeline_on_an_object_store_that_is_away_for_a_while(bare_hosts, sums_file, tiny):
    hosts = bare_hosts
    output, away = hosts.shared / "output", hosts.shared / "away"
    script = Path(__file__).parents[1] / "s3_server.py"
    server = hosts.begin("h0", f"python {script} {SERVER} {PORT} {away}", hosts.shared / "server")
    hosts.own_caches(("h0", "h1", "h2", "h3"))
    hosts.settings += " AWS_ACCESS_KEY_ID=testing AWS_SECRET_ACCESS_KEY=testing AWS_EC2_METADATA_DISABLED=true"
    for host in ("h1", "h2", "h3"):
        hosts.start_ray(host)
    options = f"scheme=http&endpoint_override={SERVER}:{PORT}&region=us-east-1&allow_bucket_creation=true"
    tiny |= {"store": f"s3://bucket/store?{options}", "data": {"sources": [{"path": sums_file.name}]}}
    tiny["train"] |= {"epochs": 200, "checkpoint_every_steps": 100, "zero": {"stage": 2}}
    tiny["evaluate"] |= {"gate": {"min_loss_reduction": -1.0}}
    (hosts.shared / "p.yaml").write_text(yaml.safe_dump(tiny))
    hosts.sh("h0", f"bash -c 'mkdir -p p && cp {hosts.shared}/p.yaml {sums_file} p'")

    try:
        submitted = hosts.begin("h0", f"rayconteur submit p/p.yaml --json --address {HEAD}", output)
        has_checkpoint = lambda event: bool(event.get("held_out_loss")) and event["done"] > 150  # noqa: E731
        hosts.wait_for(output, "a checkpoint", has_checkpoint, seconds=600)
        away.touch()
        time.sleep(AWAY_S)
        away.unlink()
        assert submitted.wait(timeout=900) == 0, output.read_text()[-3000:]
        events = hosts.events(output)
        ended = {event["stage"]: event["figures"] for event in events if event["event"] == "done"}
        assert list(ended) == ["prepare", "train", "evaluate", "optimize", "deploy"]
        assert ended["train"]["resumed_from_step"] == 0
        times = [event["time"] for event in events if event["stage"] == "train" and event["event"] == "progress"]
        print(f"away for {AWAY_S} s in training, which stood still for {longest_wait(events):.0f} s at most; "
              f"trained in {times[-1] - times[0]:.0f} s")  # fmt: skip
        url = next(event["url"] for event in events if event["event"] == "endpoint")
        asked = json.dumps({"model": "tiny", "max_tokens": 4, "messages": [{"role": "user", "content": "1+1?"}]})
        ask = f"curl -s {url}/v1/chat/completions -H 'content-type: application/json' -d '{asked}'"
        reply = json.loads(hosts.sh("h1", ask))
        assert reply.get("usage", {}).get("completion_tokens", 0) > 0, reply
    finally:
        server.terminate()


def longest_wait(events):
    """Seconds without progress of the training."""
    found = [(event["time"], event["done"]) for event in events
             if event["stage"] == "train" and event["event"] == "progress"]  # fmt: skip
    steps = [when for (when, done), (_, before) in zip(found[1:], found, strict=False) if done > before]
    return max(after - before for before, after in itertools.pairwise(steps))
