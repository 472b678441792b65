"""Write a search as TensorBoard event files: every trial's figures by step, and its values under HPARAMS.

write_events(search, Path("events"))    # then: tensorboard --logdir events
"""

import time
from pathlib import Path
from typing import Any

from workflows.search.records import FAILED, RUNNING, Search, Trial
from workflows.search.table import value_word


def write_events(search: Search, folder: Path) -> None:
    """Write a subfolder for each trial; replaces those of an earlier call."""
    for trial in search.trials:
        inside = folder / f"trial_{trial.number:03d}_{trial.key[:8]}"
        for old in inside.glob("events.out.tfevents.*"):
            old.unlink()
        _write_trial(search, trial, inside)


def _write_trial(search: Search, trial: Trial, folder: Path) -> None:
    from tensorboardX import SummaryWriter
    from tensorboardX.summary import hparams

    # The HPARAMS tab shows the last point of a curve; we want a trial's best report.
    names = {metric: f"best/{metric}" for metric in search.metrics}
    values = {name: value if isinstance(value, bool | int | float) else value_word(value)
              for name, value in trial.values.items()}  # fmt: skip
    experiment, begun, ended = hparams(values, dict.fromkeys(names.values()))
    with SummaryWriter(str(folder)) as writer:
        writer.file_writer.add_summary(experiment)
        writer.file_writer.add_summary(begun)
        last = trial.last.figures.get("seconds", 0.0) if trial.last else 0.0
        for report in trial.reports:
            written = time.time() - last + report.figures.get("seconds", 0.0)
            for name, value in report.figures.items():
                writer.add_scalar(name, value, report.step, walltime=written)
        best = trial.best(search.metrics[0])
        for metric, name in names.items():
            if best and metric in best.figures:
                writer.add_scalar(name, best.figures[metric], best.step)
        if trial.state != RUNNING:
            writer.file_writer.add_summary(_failed(ended) if trial.state == FAILED else ended)


def _failed(ended: Any) -> Any:
    """The status at a trial's end; tensorboardX always writes success."""
    from tensorboardX.proto.api_pb2 import Status
    from tensorboardX.proto.plugin_hparams_pb2 import HParamsPluginData

    data = ended.value[0].metadata.plugin_data
    content = HParamsPluginData.FromString(data.content)
    content.session_end_info.status = Status.Value("STATUS_FAILURE")
    data.content = content.SerializeToString()
    return ended
