"""A machine is lost during training and returns: training continues without it, then with it."""

import time

import yaml


def at(workers, after):
    """Accepts a step beyond `after` with this many workers."""
    return lambda event: (
        event["event"] == "progress" and event.get("num_workers") == workers and event["done"] > after
    )


def test_training_continues_without_a_lost_machine_and_takes_it_back(hosts, sums_file, tiny):
    store, output, file = hosts.shared / "store", hosts.shared / "output", hosts.shared / "pipeline.yaml"
    tiny |= {"store": str(store), "cluster": {"address": "auto"}}
    tiny["train"] |= {"num_workers": [1, 3], "zero": {"stage": 2}, "epochs": 400, "checkpoint_every_steps": 50}
    file.write_text(yaml.safe_dump(tiny))
    driver = hosts.begin("h1", f"rayconteur train {file} --json", output)
    try:
        hosts.wait_for(output, "training with 3 workers", at(3, 60), seconds=600)  # may compile the operator
        hosts.call("off", "h4")
        done = hosts.events(output)[-1]["done"]
        lost = hosts.wait_for(output, "training with 2 workers", at(2, 0))
        hosts.call("on", "h4")
        time.sleep(2)
        hosts.start_ray("h4")
        back = hosts.wait_for(output, "3 workers again", at(3, done))
        print(f"cut off: {lost:.0f} s to the next step; taken back: {back:.0f} s after its ray start")
    finally:
        driver.terminate()
