"""Pack what a job needs on a cluster: this project's packages, the pipeline file, the small files beside it.

pack(spec, beside, folder)
archive(folder)                               # Ray uploads it as the job's working directory
if missing(packages_there): pinned()          # the packages to install for the job
"""

import contextlib
import importlib.metadata
import shutil
import zipfile
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.fs
import yaml
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name
from packaging.version import Version

from workflows.corpus.files.sources import files_at
from workflows.corpus.user_filter import UserFilter
from workflows.record import JsonObject
from workflows.spec import PipelineSpec
from workflows.spec.paths import local_paths, with_code, with_paths
from workflows.stage import StageFailed
from workflows.store import fingerprint
from workflows.suites.files import user_scorers

# Maximum bytes, in total, of the files beside a pipeline file that are uploaded with the job.
MAX_SHIPPED = 64 << 20


def pack(spec: PipelineSpec, beside: Path, folder: Path) -> JsonObject:
    """Write what a job needs into `folder`: this project's packages, the pipeline file, and the files that it names
    in the folder `beside`. Returns what identifies the run: the pipeline and fingerprints of the files.
    """
    folder.mkdir(exist_ok=True)
    for name in ("workflows", "models", "serve"):
        shutil.copytree(_package(name), folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    version = folder / f"rayconteur-{about()['Version']}.dist-info"  # which version this is
    version.mkdir()
    (version / "METADATA").write_text(f"Metadata-Version: 2.1\nName: rayconteur\nVersion: {about()['Version']}\n")
    travelling: dict[str, str] = {}
    for number, (field, path) in enumerate(local_paths(spec).items()):
        if Path(path).is_relative_to(beside.resolve()):
            travelling[field] = _copy(field, path, folder, f"files/{number}")
    copies = sorted(file for file in folder.glob("files/**/*") if file.is_file())
    size = sum(file.stat().st_size for file in copies)
    if size > MAX_SHIPPED:
        raise StageFailed(
            f"{', '.join(travelling)}: the files beside the pipeline file have {size / 1e6:,.0f} MB, and a job "
            f"uploads at most {MAX_SHIPPED >> 20} MB; put them where all nodes of the cluster can read them (s3://, "
            "gs://, a shared folder) and use that path"
        )
    there = with_code(with_paths(spec, travelling), lambda path: path.rpartition("/")[2])
    plain = there.model_dump(mode="json")
    keep = None if spec.data.filter is None else UserFilter.of(spec.data.filter)
    scorers = user_scorers(spec.evaluate)
    for function in [*([keep] if keep else []), *scorers]:
        function.code.write(folder)
    # What the job's machine cannot find out itself stays.
    there_too = spec.cluster.model_dump(mode="json", include={"scales_to", "price_per_hour"}, exclude_none=True)
    plain["cluster"] = {"address": "auto", **there_too}
    (folder / "pipeline.yaml").write_text(yaml.safe_dump(plain, sort_keys=False))
    local = pa.fs.LocalFileSystem()
    keys = [keep and keep.key, *(scorer.key for scorer in scorers)]
    return {"pipeline": plain, "files": [*(fingerprint(local, str(file)) for file in copies), *keys]}


def archive(folder: Path) -> Path:
    """A zip file beside `folder` with all its files; equal ones have equal bytes, and Ray uploads those once."""
    file = folder.with_suffix(".zip")
    with zipfile.ZipFile(file, "w") as packed:
        for path in sorted(path for path in folder.rglob("*") if path.is_file()):
            entry = zipfile.ZipInfo(path.relative_to(folder).as_posix())
            packed.writestr(entry, path.read_bytes(), zipfile.ZIP_DEFLATED)
    return file


def left_behind(spec: PipelineSpec, beside: Path) -> list[str]:
    """A note for each file of this machine that a job does not upload, because it is in another folder."""
    return [
        f"{field}: {path} is not in the pipeline file's folder, and is not uploaded; all nodes must have this path"
        for field, path in local_paths(spec).items()
        if not Path(path).is_relative_to(beside.resolve()) and Path(path).exists()
    ]


def _copy(field: str, path: str, folder: Path, target: str) -> str:
    """Copy what a field names into `folder`; returns its path relative to `folder`."""
    if any(sign in path for sign in "*?["):
        before = Path(path)
        while any(sign in str(before) for sign in "*?["):
            before = before.parent
        found = files_at(pa.fs.LocalFileSystem(), path)
        for file in found:
            (folder / target / Path(file).relative_to(before)).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(file, folder / target / Path(file).relative_to(before))
        if found:
            return f"{target}/{Path(path).relative_to(before)}"
    elif Path(path).is_dir():
        shutil.copytree(path, folder / target / Path(path).name)
        return f"{target}/{Path(path).name}"
    elif Path(path).is_file():
        (folder / target).mkdir(parents=True)
        shutil.copy2(path, folder / target)
        return f"{target}/{Path(path).name}"
    raise StageFailed(f"{field}: nothing found at {path}; give a file, folder, glob or URI")


def _package(name: str) -> str:
    found = find_spec(name)
    assert found is not None
    assert found.submodule_search_locations is not None
    return next(iter(found.submodule_search_locations))


def about() -> Any:
    """This project's package metadata: name, version, required Python."""
    return importlib.metadata.metadata("rayconteur")


def requirements(name: str = "rayconteur") -> list[Requirement]:
    """The requirements of an installed package, by default of this project, without extras."""
    found = [Requirement(text) for text in importlib.metadata.requires(name) or []]
    return [each for each in found if each.marker is None or each.marker.evaluate({"extra": ""})]


def supported_ray() -> SpecifierSet:
    """The versions of Ray that this project supports."""
    return next(each.specifier for each in requirements() if each.name == "ray")


def missing(packages: dict[str, str]) -> list[str]:
    """Those of our requirements that `packages`, canonical names mapped to versions, do not meet."""
    return [
        str(each)
        for each in requirements()
        if not each.specifier.contains(packages.get(canonicalize_name(each.name), "0"), prereleases=True)
    ]


def pinned() -> list[str]:
    """Our requirements and theirs, pinned to the versions installed here; without Ray, which the cluster has."""
    found: dict[str, str] = {}
    waiting = [each for each in requirements() if each.name != "ray"]
    while waiting:
        each = waiting.pop()
        name = canonicalize_name(each.name)
        if name in found:
            continue
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[name] = f"{name}=={Version(importlib.metadata.version(name)).public}"
            waiting += requirements(name)
    return sorted(found.values())
