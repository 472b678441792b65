"""Finds settings in `train.deepspeed` that DeepSpeed would ignore, as it does most unknown names.

`mistakes(config, extra)` runs in its own process, since importing DeepSpeed takes seconds; `found_mistakes` in this
one. DeepSpeed gets a dictionary that records which names it reads: it would ignore all others.
"""

import contextlib
import io
import json
import os
import subprocess
import sys
from collections.abc import Iterator, KeysView
from typing import Any, get_args

from models.errors import nearest

_PROCESS_SECONDS = 300


def mistakes(config: dict[str, Any], extra: dict[str, Any]) -> list[str]:
    """What is wrong with `extra`, which is merged into `config`, DeepSpeed's whole configuration."""
    if not extra:  # nothing to check, and it saves seconds
        return []
    process = subprocess.run(
        [sys.executable, "-m", __name__],
        input=json.dumps([config, extra]),
        # The names do not depend on the device, so no GPU is needed.
        env={**os.environ, "DS_ACCELERATOR": "cpu", "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
        capture_output=True,
        text=True,
        timeout=_PROCESS_SECONDS,
        check=False,
    )
    if process.returncode:
        raise RuntimeError(f"DeepSpeed's configuration could not be checked: {process.stderr[-2000:]}")
    found: list[str] = json.loads(process.stdout.splitlines()[-1])
    return found


def found_mistakes(config: dict[str, Any], extra: dict[str, Any]) -> list[str]:
    """`mistakes`, in this process."""
    from deepspeed.runtime.config import DeepSpeedConfig
    from pydantic import ValidationError

    if not extra:
        return []
    found = [
        f"{path}: `auto` is for the Hugging Face Trainer, and DeepSpeed ignores it; give a value, or remove it"
        for path, value in _leaves(extra)
        if value == "auto"
    ]
    asked = _Asked(config, is_whole=True)
    while True:  # DeepSpeed reports unknown names one section at a time
        try:
            with contextlib.redirect_stdout(io.StringIO()):
                DeepSpeedConfig(asked)
            break
        except ValidationError as error:
            refused = [_refused(error, one, asked, extra) for one in error.errors()]
            found += [message for _, message in refused]
            paths = [path for path, _ in refused if path]
            if not paths:
                return found
            config = _without(config, paths)
            asked = _Asked(config, is_whole=True)
        except Exception as error:  # it would raise the same in a training
            return [*found, f"{_named(str(error), extra)}: DeepSpeed refuses it: {error}"]
    return found + [_unknown(path, known) for path, known in asked.ignored(extra)]


class _Asked(dict[str, Any]):
    """A dictionary that records which names are read, also in its copies and in nested dictionaries."""

    def __init__(self, values: dict[str, Any], is_whole: bool = False) -> None:
        super().__init__({name: _Asked(item) if isinstance(item, dict) else item for name, item in values.items()})
        self.asked: list[str] = []
        self._is_whole = is_whole

    def __copy__(self) -> "_Asked":
        if self._is_whole:  # names that it reads before it copies everything are deprecated ones
            self._forget()
        copy = _Asked({})
        copy.update(self)
        copy.asked = self.asked
        return copy

    def __contains__(self, name: object) -> bool:
        self.asked.append(str(name))
        return super().__contains__(name)

    def __getitem__(self, name: str) -> Any:
        self.asked.append(name)
        return super().__getitem__(name)

    def get(self, name: str, default: Any = None) -> Any:
        self.asked.append(name)
        return super().get(name, default)

    def keys(self) -> Any:
        return _Names(self)

    def _forget(self) -> None:
        self.asked.clear()
        for item in self.values():
            if isinstance(item, _Asked):
                item._forget()

    def ignored(self, extra: dict[str, Any], above: tuple[str, ...] = ()) -> Iterator[tuple[str, list[str]]]:
        """The paths in `extra` that were not read, with the names that were read in the same section."""
        if not self.asked:
            return  # read as a whole: by pydantic, which refuses unknown names
        for name, value in extra.items():
            path = (*above, name)
            if name not in self.asked:
                yield ".".join(path), sorted({*self.asked})
            elif isinstance(value, dict) and isinstance(inner := super().get(name), _Asked):
                yield from inner.ignored(value, path)


class _Names(KeysView[str]):
    """The names of an `_Asked`; looking one up is recorded."""

    def __init__(self, names: _Asked) -> None:
        super().__init__(names)
        self._names = names

    def __contains__(self, name: object) -> bool:
        return name in self._names


def _refused(error: Any, one: Any, asked: _Asked, extra: dict[str, Any]) -> tuple[tuple[str, ...], str]:
    """An error of a DeepSpeed section: its path in `extra`, if it has one, and its text."""
    place = tuple(str(part) for part in one["loc"])
    paths = [(*above, *place) for above in _sections(extra) if place and _is_in(extra, (*above, *place))]
    last = next((name for name in reversed(asked.asked) if name in extra), "")
    path = next((path for path in paths if path[0] == last), next(iter(paths), ()))
    if one["type"] == "extra_forbidden" and path:
        return path, _unknown(".".join(path), _fields(error.title, place))
    return path, f"{'.'.join(path or place)}: {one['msg']}"


def _named(words: str, extra: dict[str, Any]) -> str:
    """The name that DeepSpeed's message is about, if it can be recognized."""
    return next((name for name in extra if len(extra) == 1 or name in words), " or ".join(extra))


def _fields(title: str, place: tuple[str, ...]) -> list[str]:
    """The names in the section `title` of DeepSpeed's configuration, beside the last part of `place`."""
    from deepspeed.runtime.config_utils import DeepSpeedConfigModel

    model = next((section for section in _subclasses(DeepSpeedConfigModel) if section.__name__ == title), None)
    for name in place[:-1]:
        if model is None:
            return []
        fields = [field for known, field in model.model_fields.items() if name in (known, field.alias)]
        inner = [kind for field in fields for kind in (field.annotation, *get_args(field.annotation))]
        model = next((kind for kind in inner if hasattr(kind, "model_fields")), None)
    if model is None:
        return []
    return sorted(field.alias or name for name, field in model.model_fields.items())


def _subclasses(parent: Any) -> Iterator[Any]:
    for child in parent.__subclasses__():
        yield child
        yield from _subclasses(child)


def _unknown(path: str, known: list[str]) -> str:
    from deepspeed import __version__

    close = nearest(path.rpartition(".")[2], known)
    meant = f"; did you mean {close}?" if close else ";"
    return f"{path}: DeepSpeed {__version__} has no such name{meant} It knows: {', '.join(known)}"


def _leaves(values: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in values.items():
        if isinstance(value, dict):
            yield from _leaves(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def _sections(values: Any) -> Iterator[tuple[str, ...]]:
    """The path of every nested dictionary, outer ones first."""
    yield ()
    for name, value in values.items():
        if isinstance(value, dict):
            yield from ((name, *inner) for inner in _sections(value))


def _is_in(values: Any, path: tuple[str, ...]) -> bool:
    for name in path:
        if not isinstance(values, dict) or name not in values:
            return False
        values = values[name]
    return True


def _without(values: dict[str, Any], paths: list[tuple[str, ...]]) -> dict[str, Any]:
    """A copy without these paths."""
    gone = {path[0] for path in paths if len(path) == 1}
    inner = {name: [path[1:] for path in paths if len(path) > 1 and path[0] == name] for name in values}
    return {
        name: _without(value, inner[name]) if inner[name] else value
        for name, value in values.items()
        if name not in gone
    }


if __name__ == "__main__":
    print("\n" + json.dumps(found_mistakes(*json.load(sys.stdin))))
