"""The head is cut off while a job trains: the job is lost, and the same submit resumes from the store."""

import time

import yaml

HEAD = "http://198.18.7.11:8265"


def test_the_same_submit_resumes_after_the_head_is_lost(bare_hosts, sums_file, tiny):
    hosts = bare_hosts
    for host in ("h1", "h2", "h3"):
        hosts.start_ray(host)
    file, first, second = hosts.shared / "p.yaml", hosts.shared / "first", hosts.shared / "second"
    tiny |= {"store": str(hosts.shared / "store"), "data": {"sources": [{"path": sums_file.name}]}}
    tiny["train"] |= {"epochs": 200, "checkpoint_every_steps": 20, "zero": {"stage": 2}}
    file.write_text(yaml.safe_dump(tiny))
    sums_file.rename(hosts.shared / sums_file.name)
    submit = f"rayconteur submit {file} --to train --json --address {HEAD}"

    followed = hosts.begin("h0", submit, first)
    has_checkpoint = lambda event: bool(event.get("held_out_loss")) and event["done"] > 25  # noqa: E731
    hosts.wait_for(first, "a checkpoint", has_checkpoint, seconds=400)
    hosts.call("off", "h1")
    cut = time.monotonic()
    assert followed.wait(timeout=200) == 1
    said = hosts.events(first)[-1]
    assert said["event"] == "error"
    assert "submit the pipeline again to resume from the store" in said["text"]
    print(f"cut off; said so after {time.monotonic() - cut:.0f} s")

    hosts.call("on", "h1")
    time.sleep(2)
    for host in ("h2", "h3"):
        hosts.sh(host, "ray stop --force >/dev/null 2>&1")
    for host in ("h1", "h2", "h3"):
        hosts.start_ray(host)
    again = time.monotonic()
    assert hosts.begin("h0", submit, second).wait(timeout=600) == 0, second.read_text()[-2000:]
    ended = {event["stage"]: event for event in hosts.events(second) if event["event"] in ("done", "up_to_date")}
    assert ended["prepare"]["event"] == "up_to_date"
    assert ended["train"]["event"] == "done"
    resumed = ended["train"]["figures"]["resumed_from_step"]
    assert resumed >= 20
    print(f"went on from step {resumed}, and was over after {time.monotonic() - again:.0f} s")
