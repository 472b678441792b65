"""A ZeRO checkpoint for a different number of workers, through DeepSpeed's universal checkpoint.

Lian et al. 2024, Universal Checkpointing (arXiv:2406.18820): the workers' partitions are joined into whole parameters
and optimizer states, which any number of workers can partition again.
"""

import argparse
import contextlib
import io
from pathlib import Path


def to_universal(folder: Path, target: Path) -> None:
    """Join the workers' partitions in `folder` (a tag of a DeepSpeed checkpoint) and write them to `target`."""
    from deepspeed.checkpoint import ds_to_universal

    options = argparse.Namespace(
        input_folder=str(folder),
        output_folder=str(target),
        num_extract_workers=1,
        num_merge_workers=1,
        keep_temp_folder=False,
        strict=False,
        inject_missing_state=True,
    )
    with contextlib.redirect_stdout(io.StringIO()):
        ds_to_universal.main(options)
