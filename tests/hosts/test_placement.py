"""Where the stages run on a cluster in which one machine has a GPU; it is only declared, and not used."""

import json

import yaml


def listed(hosts, what):
    """Ray's records of all tasks, actors or nodes."""
    return json.loads(hosts.sh("h1", f"ray list {what} --format json --detail --limit 10000"))


def test_data_goes_to_machines_without_gpus_and_a_training_is_packed_on_one(bare_hosts, sums_file, tiny):
    hosts, output = bare_hosts, bare_hosts.shared / "output"
    hosts.start_ray("h1")
    for host in ("h2", "h3"):
        hosts.start_ray(host, cpus=2)
    hosts.start_ray("h4", cpus=2, gpus=1)
    tiny |= {"store": str(hosts.shared / "store"), "cluster": {"address": "auto"}}
    file = hosts.shared / "pipeline.yaml"
    file.write_text(yaml.safe_dump(tiny))
    assert hosts.begin("h1", f"rayconteur train {file} --json", output).wait(timeout=600) == 0, output.read_text()
    machines = {
        node["node_id"]: f"h{int(node['node_ip'].rpartition('.')[2]) - 10}" for node in listed(hosts, "nodes")
    }
    tasks = {(task["name"], machines[task["node_id"]]) for task in listed(hosts, "tasks") if task["node_id"]}
    data = {machine for name, machine in tasks if "_encode_lines" in name}
    assert data
    assert data <= {"h2", "h3"}, tasks
    workers = [machines[actor["node_id"]] for actor in listed(hosts, "actors")
               if actor["class_name"] == "RayTrainWorker"]  # fmt: skip
    assert len(workers) == 2
    assert len(set(workers)) == 1
    print(f"encoding on {data}, both training workers on {workers[0]}")
