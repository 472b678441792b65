#!/usr/bin/env bash
# A running training of Ray Train fails when another Ray cluster starts on the same machine.
#
# Ray Train 2.60.0 starts an actor, PlacementGroupCleaner, that asks Ray's state API every second whether the training's
# controller is alive. The state API does not ask the cluster that the actor belongs to, but the one named in the file
# ray_current_cluster, which the last `ray start --head` on this machine has written. That cluster knows no such
# controller, so the cleaner concludes that the controller is dead and removes the placement group of the running
# training. Below, a training waits until a second cluster runs. A user expects that it ends normally, as it does with
# RAY_API_SERVER_ADDRESS=local, with which Ray ignores the file. Whoever shares a machine is hurt: the workers are killed,
# and without max_failures the training fails; so does one on a local cluster, of ray.init. The script fails if one of the
# two outcomes changes.
set -euo pipefail
folder=$(mktemp -d)
started=()
end() { kill "${started[@]}" 2> /dev/null || true; wait; started=(); }
trap 'end; rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q 'ray[default,train]==2.60.0'
cat > "$folder/train.py" <<'PY'
import sys
import time
from pathlib import Path

import ray
from ray.train import RunConfig, ScalingConfig, WorkerGroupError
from ray.train.v2.api.data_parallel_trainer import DataParallelTrainer

folder = Path(sys.argv[1])


def work():
    time.sleep(5)
    (folder / "trains").touch()
    while not (folder / "second_runs").exists():
        time.sleep(0.1)
    time.sleep(15)


ray.init(log_to_driver=False, logging_level="ERROR")
run_config = RunConfig(storage_path=str(folder))
trainer = DataParallelTrainer(work, scaling_config=ScalingConfig(num_workers=1), run_config=run_config)
try:
    trainer.fit()
    print("the training ends")
except WorkerGroupError as error:
    removed = "its placement group was removed"
    print(f"the training fails: {removed if removed in str(error) else error}")
PY
# Ray's files, with ray_current_cluster, are in the folder, so nobody else's training is disturbed.
unset RAY_ADDRESS RAY_API_SERVER_ADDRESS
export RAY_TMPDIR="$folder" RAY_AUTH_MODE=disabled RAY_USAGE_STATS_ENABLED=0
wait_for() { for _ in $(seq 300); do if "$@"; then return; fi; sleep 0.2; done; return 1; }
start_cluster() {
  "$folder/venv/bin/ray" start --head --block --num-cpus 1 --port 0 --dashboard-port 0 --ray-client-server-port \
    $((20000 + RANDOM % 10000)) > "$folder/run/$1" 2>&1 &
  started+=($!)
  wait_for grep -q "Ray runtime started" "$folder/run/$1"
}
train_beside_a_second_cluster() {
  rm -rf "$folder/run"
  mkdir "$folder/run"
  start_cluster first
  "$folder/venv/bin/python" "$folder/train.py" "$folder/run" 2> "$folder/run/errors" &
  started+=($!)
  wait_for test -e "$folder/run/trains"
  start_cluster second
  touch "$folder/run/second_runs"
  wait "${started[1]}"
  end
}
train_beside_a_second_cluster > "$folder/seen"
RAY_API_SERVER_ADDRESS=local train_beside_a_second_cluster >> "$folder/seen"
diff "$folder/seen" - <<'SEEN'
the training fails: its placement group was removed
the training ends
SEEN
