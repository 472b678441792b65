"""The C++ operator that DeepSpeed builds on its first use on a CPU: its requirements, and no hang after a crash."""

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
    """Raise RayconteurError, naming the missing program, if DeepSpeed could not build its CPU operator."""
    if torch.cuda.is_available():
        return
    for program, fix in (
        ("g++", "install a C++ compiler (Debian: apt-get install g++)"),
        ("ninja", "run: pip install ninja"),
    ):
        if shutil.which(program, path=_search_path()) is None:
            raise RayconteurError(
                f"train: DeepSpeed builds a small C++ operator on its first use on a CPU and needs {program}, "
                f"which is not installed on this machine; {fix}"
            )


def check_file_offload() -> None:
    """Raise RayconteurError if DeepSpeed cannot offload to files."""
    from deepspeed.accelerator import get_accelerator

    if not get_accelerator().create_op_builder("AsyncIOBuilder").is_compatible(verbose=False):
        raise RayconteurError(
            "train.zero.offload: nvme needs libaio, which is not installed on this machine; install it "
            "(Debian: apt-get install libaio-dev), or use offload: cpu"
        )


def load_operator() -> None:
    """Build DeepSpeed's CPU operator, or load a previous build; one process of this machine at a time.

    torch marks a running build with a file. If the process is killed the file stays, and every later build waits
    forever. Only Rayconteur uses this folder, under a lock that ends with its process, so a file found there is
    stale.
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
    """The build folder of this Python environment: each environment builds against its own torch."""
    return cache_folder() / "operators" / hashlib.sha256(sys.prefix.encode()).hexdigest()[:12]


def _search_path() -> str:
    """PATH with this Python environment's programs, such as ninja, in case it is not activated."""
    return os.pathsep.join([os.environ.get("PATH", os.defpath), str(Path(sys.executable).parent)])
