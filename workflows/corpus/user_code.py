"""Python modules beside a pipeline file, which travel to every process that needs them.

code = UserCode.beside("mymodule", folder)         # where the pipeline file is: mymodule.py and what it imports there
function = code.module("mymodule").keep            # in any process, on any node

Ray hands its workers the driver's sys.path, which has no folder of a pipeline file in it, and the folder is on one
machine alone. So the code travels by value: each process imports it from a copy in its own cache. What is installed
has precedence, as it would in a script; a module that it hides is refused by `beside`.
"""

import ast
import importlib
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from importlib.machinery import PathFinder
from pathlib import Path, PurePosixPath
from types import ModuleType

from models.files import cache_folder, made_once
from workflows.stage import StageFailed
from workflows.store import content_key

# All code of one function; data belongs in files that the nodes reach.
MAX_CODE = 16 << 20
_OURS = frozenset({"workflows", "models", "serve"})


@dataclass(frozen=True)
class UserCode:
    """The files of modules, by their paths from the folder of the pipeline file; none where all is installed."""

    files: dict[str, bytes] = field(default_factory=dict)

    @classmethod
    def beside(cls, module: str, folder: Path, asked_by: str) -> "UserCode":
        """`module` and what it imports, as far as it is in `folder`. Raises StageFailed with the field `asked_by`."""
        top = module.partition(".")[0]
        found = files_beside(module, folder)
        if not found and _source(top, folder) is not None:
            raise StageFailed(
                f"{asked_by}: the module {top} beside the pipeline file has the name of another one, "
                f"{_elsewhere(top, folder)}, which Python would import instead; rename yours"
            )
        size = sum(file.stat().st_size for file in found.values())
        if size > MAX_CODE:
            tops = ", ".join(sorted({PurePosixPath(name).parts[0] for name in found}))
            raise StageFailed(
                f"{asked_by}: {size / 1e6:,.0f} MB in {tops} beside the pipeline file are too much to send to each "
                f"worker, the limit is {MAX_CODE >> 20} MB; keep data out of the package"
            )
        return cls({name: file.read_bytes() for name, file in sorted(found.items())})

    @cached_property
    def key(self) -> str:
        """Changes with the code."""
        return content_key({name: data.hex() for name, data in self.files.items()})

    def module(self, name: str) -> ModuleType:
        """Import a module in this process; raises what its code raises."""
        copies = cache_folder() / "code"
        # Copies for earlier pipeline files in this process have modules of the same names.
        sys.path[:] = [place for place in sys.path if not place.startswith(str(copies))]
        if self.files:
            place = str(made_once(copies / self.key, self.write))
            sys.path.append(place)
            tops = {PurePosixPath(file).parts[0].removesuffix(".py") for file in self.files}
            for loaded in [each for each in sys.modules if each.partition(".")[0] in tops]:
                if not str(getattr(sys.modules[loaded], "__file__", None)).startswith(place):
                    del sys.modules[loaded]
            importlib.invalidate_caches()
        return importlib.import_module(name)

    def write(self, folder: Path) -> None:
        """Write the files into `folder`, as they are beside the pipeline file."""
        for name, data in self.files.items():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_bytes(data)


def files_beside(module: str, folder: Path) -> dict[str, Path]:
    """The files of a module in `folder` and of those there that it imports, by their paths from there.

    A package is taken with all its files. Not taken is what Python finds elsewhere by that name.
    """
    waiting, seen = [module.partition(".")[0]], set[str]()
    found: dict[str, Path] = {}
    while waiting:
        top = waiting.pop()
        source = _source(top, folder)
        if top in seen or source is None or _elsewhere(top, folder):
            continue
        seen.add(top)
        files = [source] if source.is_file() else list(_files_in(source))
        found |= {file.relative_to(folder).as_posix(): file for file in files}
        waiting += [name for file in files if file.suffix == ".py" for name in _imports(file)]
    return found


def _source(top: str, folder: Path) -> Path | None:
    """The file or the package of a top-level module in `folder`."""
    if (folder / top).is_dir() and any((folder / top).glob("*.py")):
        return folder / top
    return folder / f"{top}.py" if (folder / f"{top}.py").is_file() else None


def _files_in(package: Path) -> Iterator[Path]:
    for file in sorted(package.rglob("*")):
        inside = file.relative_to(package).parts
        if file.is_file() and "__pycache__" not in inside and not any(part.startswith(".") for part in inside):
            yield file


def _imports(file: Path) -> set[str]:
    """The top-level modules that a file imports; none of one that is no Python: its import says why."""
    try:
        tree = ast.parse(file.read_bytes())
    except (SyntaxError, ValueError):
        return set()
    names = [alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names]
    names += [
        node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) and node.module and not node.level
    ]
    return {name.partition(".")[0] for name in names}


def _elsewhere(top: str, folder: Path) -> str | None:
    """Where Python finds a module of this name but for `folder` and our copies of such folders."""
    if top in sys.stdlib_module_names or top in sys.builtin_module_names:
        return "of Python's standard library"
    if top in _OURS:
        return "of this program"
    copies = (cache_folder() / "code").resolve()
    places = [(place, Path(place or ".").resolve()) for place in sys.path]
    others = [place for place, path in places if path != folder.resolve() and not path.is_relative_to(copies)]
    found = PathFinder.find_spec(top, others)
    if found is None:
        return None
    return str(found.origin or next(iter(found.submodule_search_locations or []), "installed"))
