#!/usr/bin/env bash
# A thread that has computed once and now only waits makes PyTorch's CPU operations in another thread sleep and wake.
#
# PyTorch 2.13.0 for CPUs computes with libgomp. The threads of a parallel operation wait for each other actively, which is
# fast, but libgomp gives that up in the whole process as soon as it has more threads than the process has cores, and it
# counts those that belong to threads which do nothing: every Python thread that has computed once keeps its own. Below, on
# two cores, a thread computes 2,000 small layers before, while and after another thread, which has computed one layer,
# waits for an event. Alone, it gives up its core almost never; beside the waiting thread, several times in each layer, and
# no longer once that thread has ended. A user expects that a thread that waits costs nothing. Training and serving with a
# loader or a worker thread are hurt: on two idle cores, a fine-tuning step with a LoRA adapter took 1.6 times as long. On
# cores that others use too, it is the other way round. The script fails if whether it sleeps before, while or
# after changes.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q torch==2.13.0 numpy==2.3.5
cat > "$folder/layers.py" <<'PY'
import os
import resource
import threading

os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:2])  # before libgomp counts the cores

import torch

torch.set_num_threads(2)
rows, weights = torch.randn(64, 576), torch.randn(576, 576)
has_computed, may_end = threading.Event(), threading.Event()


def layer():
    torch.nn.functional.silu(rows @ weights)


def sleeps_per_layer(count=2000):
    layer()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_nvcsw
    for _ in range(count):
        layer()
    found = (resource.getrusage(resource.RUSAGE_SELF).ru_nvcsw - before) / count
    return "fewer than one in ten layers" if found < 0.1 else "more than one in each layer" if found > 1 else found


def compute_once_and_wait():
    layer()
    has_computed.set()
    may_end.wait()


print("alone:", sleeps_per_layer())
other = threading.Thread(target=compute_once_and_wait)
other.start()
has_computed.wait()
print("beside a thread that waits:", sleeps_per_layer())
may_end.set()
other.join()
print("after its end:", sleeps_per_layer())
PY
"$folder/venv/bin/python" "$folder/layers.py" > "$folder/seen"
diff "$folder/seen" - <<'SEEN' && echo "as described: torch 2.13.0"
alone: fewer than one in ten layers
beside a thread that waits: more than one in each layer
after its end: fewer than one in ten layers
SEEN
