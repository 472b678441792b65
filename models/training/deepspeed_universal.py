"""A ZeRO checkpoint for another number of workers, by way of DeepSpeed's universal checkpoint.

Lian et al. 2024, Universal Checkpointing (arXiv:2406.18820): the workers' parts are joined to whole parameters and
optimizer states, of which any number of workers can take their parts.
"""

import argparse
import contextlib
import io
from pathlib import Path


def to_universal(folder: Path, target: Path) -> None:
    """Write into `target` what the workers' parts in `folder` (a tag of a DeepSpeed checkpoint) come to together."""
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
