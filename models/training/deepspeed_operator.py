"""The C++ operator that DeepSpeed builds on its first use on a CPU: what it needs, and no hang after a crash."""

import hashlib
import os
import shutil
import sys
from pathlib import Path

import torch
from filelock import FileLock

from models.errors import RayconteurError
from models.files import cache_folder


def check_build_tools() -> None:
    """Raise RayconteurError, naming the missing program, where DeepSpeed could not build its CPU operator."""
    if torch.cuda.is_available():
        return
    for program, fix in (
        ("g++", "install a C++ compiler (Debian: apt-get install g++)"),
        ("ninja", "run: pip install ninja"),
    ):
        if shutil.which(program, path=_search_path()) is None:
            raise RayconteurError(
                f"train: DeepSpeed builds a small C++ operator on its first use on a CPU and needs {program}, "
                f"which is not on this machine; {fix}"
            )


def check_file_offload() -> None:
    """Raise RayconteurError where DeepSpeed cannot read and write files as offloading to them needs."""
    from deepspeed.accelerator import get_accelerator

    if not get_accelerator().create_op_builder("AsyncIOBuilder").is_compatible(verbose=False):
        raise RayconteurError(
            "train.zero.offload: nvme needs libaio, which is not on this machine; install it "
            "(Debian: apt-get install libaio-dev), or use offload: cpu"
        )


def load_operator() -> None:
    """Build DeepSpeed's CPU operator, or load what was built; one process of this machine at a time.

    torch marks a build with a file that stays when its process is killed, and every later one then waits for ever.
    The folder is ours alone and entered under a lock that ends with its process: a mark found there is a dead one's.
    """
    from deepspeed.accelerator import get_accelerator

    if torch.cuda.is_available():
        return
    folder = operator_folder()
    folder.mkdir(parents=True, exist_ok=True)
    os.environ |= {"TORCH_EXTENSIONS_DIR": str(folder), "PATH": _search_path()}
    with FileLock(folder / "rayconteur.lock"):
        for mark in folder.glob("*/lock"):
            mark.unlink()
        get_accelerator().create_op_builder("ShareMemCommBuilder").load(verbose=False)


def operator_folder() -> Path:
    """Where this Python environment's operators are built: each has its own torch to build against."""
    return cache_folder() / "operators" / hashlib.sha256(sys.prefix.encode()).hexdigest()[:12]


def _search_path() -> str:
    """PATH with this Python environment's programs: ninja comes with it, and it need not be activated."""
    return os.pathsep.join([os.environ.get("PATH", os.defpath), str(Path(sys.executable).parent)])
