"""DeepSpeed's engine in one process: every ZeRO stage learns what plain torch learns, and resumes exactly."""

import os
import subprocess
import sys

import pytest

from models.operator import operator_folder

SCRIPT = """
import json, pathlib, sys, tempfile, torch
torch.set_num_threads(1)
torch.distributed.init_process_group("gloo", init_method=f"file://{sys.argv[1]}", rank=0, world_size=1)
from models import adapters
from models.base import load_model, load_tokenizer, resolve
from models.chat import encode_conversation
from models.engine import DeepSpeedEngine, TorchEngine
from models.objectives.sft import Sft
from models.attention import PACKED_ATTENTION
from models.packing import StepPlan, pack

folder = resolve("random:tiny-llama")
tokenizer = load_tokenizer(folder)
talks = [[{"role": "user", "content": f"{n}?"}, {"role": "assistant", "content": f"It is {n}."}] for n in range(20)]
rows = [(e.input_ids, e.supervised) for e in (encode_conversation(tokenizer, talk) for talk in talks)]
plan = StepPlan([len(i) for i, _ in rows], [sum(m[1:]) for _, m in rows], 300, 1, 2, 0)

def make(kind, stage, precision):
    torch.manual_seed(0)
    model = load_model(folder, torch.float32 if precision == "fp32" else torch.bfloat16, PACKED_ATTENTION)
    if kind == "lora":
        model = adapters.attach(model, 4, 8, 0.0, "all-linear", "base")
    if stage is None:
        return TorchEngine(model, Sft())
    return DeepSpeedEngine(model, Sft(), zero_stage=stage, precision=precision, gradient_accumulation=2,
                           weight_decay=0.0, gradient_clip=1.0)

def steps(engine, start, end):
    losses = []
    for step in range(start, end):
        batches = [pack([rows[row] for row in part]) for part in plan.micro_batches(step, 0)]
        weight = plan.weight(step)
        losses.append(sum(engine.accumulate(batch, weight)["loss"] for batch in batches) / weight)
        engine.update(3e-3)
    return losses

results = {}
for kind in ("full", "lora"):
    results[kind] = {"torch": steps(make(kind, None, "fp32"), 0, 6)}
    for stage in range(4):
        for precision in ("fp32", "bf16"):
            whole = steps(make(kind, stage, precision), 0, 6)
            first = make(kind, stage, precision)
            steps(first, 0, 3)
            state = pathlib.Path(tempfile.mkdtemp())
            first.snapshot()(state)
            second = make(kind, stage, precision)
            second.load(state)
            exported = sorted(file.name for file in (state / "model").iterdir())
            resumed = steps(second, 3, 6)
            results[kind][f"{stage} {precision}"] = {"whole": whole, "resumed": resumed, "files": exported}
pathlib.Path(sys.argv[2]).write_text(json.dumps(results))
"""


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    import json

    folder = tmp_path_factory.mktemp("deepspeed")
    # What a process killed while it built the operator leaves behind, for which torch would wait for ever.
    mark = operator_folder() / "deepspeed_shm_comm" / "lock"
    mark.parent.mkdir(parents=True, exist_ok=True)
    mark.touch()
    environment = {
        **os.environ,
        "DS_ACCELERATOR": "cpu",
        "OMP_NUM_THREADS": "1",
        "LOCAL_RANK": "0",
        "RANK": "0",
        "WORLD_SIZE": "1",
    }
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(folder / "rendezvous"), str(folder / "results.json")],
        env=environment, capture_output=True, text=True, check=False, timeout=600,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads((folder / "results.json").read_text())


@pytest.mark.parametrize("kind", ["full", "lora"])
@pytest.mark.parametrize("stage", range(4))
def test_every_stage_learns_like_plain_torch_and_resumes(results, kind, stage):
    plain = results[kind]["torch"]
    assert plain[-1] < plain[0] - 0.1
    exact, halved = results[kind][f"{stage} fp32"], results[kind][f"{stage} bf16"]
    assert exact["whole"] == pytest.approx(plain, abs=2e-3)
    assert halved["whole"] == pytest.approx(plain, abs=5e-2)
    for run in (exact, halved):
        assert run["resumed"] == pytest.approx(run["whole"][3:], abs=1e-6)
        assert ("adapter_model.safetensors" if kind == "lora" else "model.safetensors") in run["files"]
