"""A worker machine loses its power in each stage: the run completes, and nothing is lost."""

import gzip
import json
import random
import time

import pyarrow.parquet
import yaml


def pipeline(hosts, tiny, **sections):
    """A pipeline file that all hosts can read."""
    tiny |= {"store": str(hosts.shared / "store"), "cluster": {"address": "auto"}}
    for name, fields in sections.items():
        tiny[name] = {**tiny.get(name, {}), **fields}
    file = hosts.shared / "pipeline.yaml"
    file.write_text(yaml.safe_dump(tiny))
    return file


def ends_well(hosts, process, output):
    """The event that ends the last stage."""
    assert process.wait(timeout=900) == 0, output.read_text()[-3000:]
    return next(event for event in reversed(hosts.events(output)) if event["event"] == "done")


def progress(**at_least):
    def is_there(event):
        return event["event"] == "progress" and all(
            (event.get(name) or 0) >= least for name, least in at_least.items()
        )

    return is_there


def cut(hosts, host, output):
    """Cut a host off; returns a function that waits for the next progress and returns how long it took."""
    done = hosts.events(output)[-1]["done"]
    hosts.call("off", host)
    began = time.monotonic()

    def seconds(goes_on):
        hosts.wait_for(output, f"to go on after {host} was lost at {done}", goes_on(done))
        return time.monotonic() - began

    return seconds


def test_a_worker_is_lost_in_prepare(hosts, tiny):
    lines = [{"messages": [{"role": "user", "content": f"{n}?" * 20}, {"role": "assistant", "content": str(n)}]}
             for n in range(60_000)]  # fmt: skip
    for part in range(6):
        with gzip.open(hosts.shared / f"part{part}.jsonl.gz", "wt", compresslevel=1) as stream:
            stream.writelines(json.dumps(line) + "\n" for line in lines[part::6])
    output = hosts.shared / "output"
    file = pipeline(hosts, tiny, data={"sources": [{"path": f"{hosts.shared}/part*.jsonl.gz"}]})
    process = hosts.begin("h1", f"rayconteur prepare {file} --json", output)
    hosts.wait_for(output, "lines", progress(conversations=8_000), seconds=400)
    conversations = hosts.events(output)[-1]["conversations"]
    lost = cut(hosts, "h4", output)
    stalled = lost(lambda done: progress(conversations=conversations + 6_000))
    figures = ends_well(hosts, process, output)["figures"]
    assert figures["conversations"] + figures["held_out_conversations"] == len(lines)
    print(f"prepare: 6,000 lines after the cut were there {stalled:.0f} s later; all lines once")


def is_comparing(event):
    return event.get("unit") == "conversations compared"


def left_out(store):
    """(source, line, reason) of each conversation that is left out."""
    [folder] = store.glob("prepare/*/corpus/split=left_out")
    rows = pyarrow.parquet.read_table(folder, columns=["source", "line", "reason"], partitioning=None).to_pylist()
    return sorted((row["source"], row["line"], row["reason"]) for row in rows)


def test_a_worker_is_lost_while_near_duplicates_are_looked_for(hosts, tiny):
    draw = random.Random(0)
    words = [f"w{number}" for number in range(3000)]
    texts = [" ".join(draw.choices(words, k=60)) for _ in range(30_000)]
    for place in range(0, len(texts), 10):
        texts[place] = texts[draw.randrange(len(texts))] + f" again{place}"
    for part in range(6):
        lines = [{"messages": [{"role": "user", "content": text}, {"role": "assistant", "content": "I see."}]}
                 for text in texts[part::6]]  # fmt: skip
        with gzip.open(hosts.shared / f"part{part}.jsonl.gz", "wt", compresslevel=1) as stream:
            stream.writelines(json.dumps(line) + "\n" for line in lines)
    data = {"sources": [{"path": f"{hosts.shared}/part*.jsonl.gz"}], "deduplicate": "drop"}
    stores = {}
    for name in ("undisturbed", "disturbed"):
        output = hosts.shared / name
        file = pipeline(hosts, tiny, data=data)
        command = f"rayconteur prepare {file} --set store={hosts.shared}/{name}-store --json"
        process = hosts.begin("h1", command, output)
        if name == "disturbed":
            hosts.wait_for(output, "comparing", is_comparing, seconds=400)
            hosts.call("off", "h4")
        ends_well(hosts, process, output)
        stores[name] = hosts.shared / f"{name}-store"
    expected = left_out(stores["undisturbed"])
    assert len(expected) > 2_500
    assert left_out(stores["disturbed"]) == expected
    print(f"prepare: h4 was cut off while conversations were compared; the same {len(expected):,} are left out")


def test_a_worker_is_lost_in_train(hosts, sums_file, tiny):
    output = hosts.shared / "output"
    train = {"num_workers": 2, "zero": {"stage": 2}, "epochs": 120, "checkpoint_every_steps": 20}
    file = pipeline(hosts, tiny, train=train)
    process = hosts.begin("h1", f"rayconteur train {file} --json", output)
    hosts.wait_for(output, "training", progress(done=50), seconds=600)
    at_work = hosts.sh("h1", "ray list actors --filter class_name=RayTrainWorker --filter state=ALIVE --format json")
    nodes = {node["node_id"]: node["node_ip"] for node in json.loads(hosts.sh("h1", "ray list nodes --format json"))}
    addresses = sorted(nodes[actor["node_id"]] for actor in json.loads(at_work))
    lost = cut(hosts, f"h{int(addresses[-1].rpartition('.')[2]) - 10}", output)
    stalled = lost(lambda done: progress(done=done + 1, resumed_from_step=40))
    figures = ends_well(hosts, process, output)["figures"]
    assert figures["resumed_from_step"] >= 40
    print(f"train: beyond the step of the cut {stalled:.0f} s later, from step {figures['resumed_from_step']}")


def test_a_worker_is_lost_in_tune(hosts, sums_file, tiny):
    output = hosts.shared / "output"
    space = {"train.learning_rate": {"loguniform": [1e-4, 3e-2]}}
    search = {"space": space, "trials": 5, "scheduler": "none", "max_failures": 2}
    file = pipeline(hosts, tiny, train={"num_workers": 1, "epochs": 20, "checkpoint_every_steps": 10}, tune=search)
    process = hosts.begin("h1", f"rayconteur tune {file} --json", output)
    hosts.wait_for(output, "trials", progress(done=1), seconds=600)
    lost = cut(hosts, "h4", output)
    stalled = lost(lambda done: progress(done=done + 2))
    figures = ends_well(hosts, process, output)["figures"]
    assert (figures["trials"], figures["finished"], figures.get("failed", 0)) == (5, 5, 0)
    print(f"tune: two more trials had ended {stalled:.0f} s after the cut; 5 of 5 finished")


CLIENT = """
import concurrent.futures, httpx, json, pathlib, sys, time
url, stop = sys.argv[1], pathlib.Path(sys.argv[2])
body = {"model": "tiny", "max_tokens": 24, "messages": [{"role": "user", "content": "1+1?"}]}
def client(number):
    times, statuses = [], {}
    while not stop.exists():
        began = time.monotonic()
        answer = httpx.post(url + "/v1/chat/completions", json=body, timeout=120)
        times.append(time.monotonic() - began)
        statuses[answer.status_code] = statuses.get(answer.status_code, 0) + 1
    return max(times), statuses
with concurrent.futures.ThreadPoolExecutor(4) as pool:
    found = list(pool.map(client, range(4)))
total = {}
for _, statuses in found:
    for status, count in statuses.items():
        total[status] = total.get(status, 0) + count
print(json.dumps({"slowest": max(slowest for slowest, _ in found), "statuses": total}))
"""


def test_while_serving(hosts, sums_file, tiny):
    output, asked, stop = hosts.shared / "output", hosts.shared / "asked", hosts.shared / "stop"
    serve = {"min_replicas": 2, "max_replicas": 2, "engine": "torch"}
    file = pipeline(hosts, tiny, train={"num_workers": 1}, serve=serve, evaluate={"gate": {"min_loss_reduction": -1}})
    ends_well(hosts, hosts.begin("h1", f"rayconteur run {file} --json", output), output)
    url = next(event["url"] for event in hosts.events(output) if event["event"] == "endpoint")

    def replicas():
        listed = "ray list actors --filter state=ALIVE --format json --limit 1000"
        return {actor["actor_id"]: actor["node_id"] for actor in json.loads(hosts.sh("h1", listed))
                if actor["class_name"].startswith("ServeReplica:") and "Chat" in actor["class_name"]}  # fmt: skip

    before = replicas()
    assert len(set(before.values())) == 2, "each on a machine of its own"
    nodes = {node["node_id"]: node["node_ip"] for node in json.loads(hosts.sh("h1", "ray list nodes --format json"))}
    (hosts.shared / "client.py").write_text(CLIENT)
    client = hosts.begin("h1", f"python {hosts.shared}/client.py {url} {stop}", asked)
    time.sleep(10)
    began = time.monotonic()
    hosts.call("off", f"h{int(nodes[next(iter(before.values()))].rpartition('.')[2]) - 10}")
    while len(set(replicas()) - set(before)) < 1 and time.monotonic() - began < 240:
        time.sleep(2)
    back = time.monotonic() - began
    time.sleep(10)
    stop.touch()
    assert client.wait(timeout=200) == 0, asked.read_text()[-2000:]
    answers = json.loads(asked.read_text().splitlines()[-1])
    print(f"serve: two replicas again {back:.0f} s after the cut; {answers}")
    assert set(answers["statuses"]) == {"200"}
