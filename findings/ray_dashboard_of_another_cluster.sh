#!/usr/bin/env bash
# Ray's state API shows the nodes of another cluster, although it gets the address of the right one.
#
# Ray 2.60.0: a cluster with include_dashboard=False has no server for the state API, but its store names the address at
# which the dashboard would listen (by default 127.0.0.1:8265), and the state API asks there. While nobody listens, it
# raises ServerUnavailable, as a user expects. The port is free, so the dashboard of the next cluster on this machine gets
# it, and answers: list_nodes with the first cluster's address returns the second cluster's node, without an error. Ray
# Train is hurt: its PlacementGroupCleaner asks the state API for the training's controller, hears that there is none, and
# removes the placement group of the running training. The script fails if the output changes.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q 'ray[default]==2.60.0'
cat > "$folder/second.py" <<'PY'
import sys

import ray

ray.init(address="local", num_cpus=1, dashboard_port=int(sys.argv[1]), logging_level="ERROR")
print(ray.get_runtime_context().get_node_id(), flush=True)
input()
PY
cat > "$folder/look.py" <<'PY'
import socket
import subprocess
import sys

import ray
from ray.util.state import list_nodes

with socket.socket() as probe:  # not the default port, which may be taken on this machine
    probe.bind(("127.0.0.1", 0))
    port = probe.getsockname()[1]
ray.init(address="local", num_cpus=1, include_dashboard=False, dashboard_port=port, logging_level="ERROR")
context = ray.get_runtime_context()
names = {context.get_node_id(): "the first cluster's node"}


def look(when):
    try:
        nodes = [names[node.node_id] for node in list_nodes(address=context.gcs_address)]
    except Exception as error:
        nodes = [type(error).__name__]
    print(f"{when}: {', '.join(nodes)}", flush=True)


look("alone")
command = [sys.executable, sys.argv[1], str(port)]
with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as second:
    names[second.stdout.readline().strip()] = "the second cluster's node"
    look("beside a second cluster")
    second.communicate("end\n")
PY
unset RAY_ADDRESS RAY_API_SERVER_ADDRESS
export RAY_TMPDIR="$folder" RAY_AUTH_MODE=disabled RAY_USAGE_STATS_ENABLED=0
"$folder/venv/bin/python" "$folder/look.py" "$folder/second.py" 2> "$folder/errors" | tee "$folder/seen"
diff "$folder/seen" - <<'SEEN'
alone: ServerUnavailable
beside a second cluster: the second cluster's node
SEEN
