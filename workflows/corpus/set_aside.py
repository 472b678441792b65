"""Group the lines that `prepare` has set aside by reason.

groups = SetAside()
groups.add(reason, file, line)
set_aside_text(groups.groups())
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass, field

from workflows.figures import SetAsideGroup

# Reasons contain quoted values and numbers; without them, the kind of mistake is left.
_QUOTED = re.compile(r"""(?<!\w)'(?:[^'\\]|\\.)*'(?!\w)|"(?:[^"\\]|\\.)*\"""")
_NUMBER = re.compile(r"\b(?:0x[0-9a-fA-F]+|\d[\d,]*(?:\.\d+)?)\b")
EXCERPT_CHARACTERS = 200
"""of a line's text that the quarantine keeps"""
_MAX_GROUPS = 200
_OTHERS = "other reasons"
_MAX_SHOWN = 8
_MAX_CHARACTERS = 300


def kind_of(reason: str) -> str:
    """A reason without the parts that differ between lines: quoted values become '…', numbers N."""
    return _NUMBER.sub("N", _QUOTED.sub("'…'", reason))


@dataclass
class _Group:
    count: int
    example: tuple[int, int, str, str]
    """(order of the file, line, file, reason); the minimum is the first in the order of the sources"""


@dataclass
class SetAside:
    """Counts by kind of reason, with the first line of each; 200 kinds separately, further ones together."""

    _groups: dict[str, _Group] = field(default_factory=dict)

    def add(self, reason: str, order: int, file: str, line: int) -> None:
        """Add a line; `order` is the position of its file among the sources."""
        kind = kind_of(reason)
        if kind not in self._groups and len(self._groups) >= _MAX_GROUPS:
            kind = _OTHERS
        found = (order, line, file, reason)
        group = self._groups.setdefault(kind, _Group(0, found))
        group.count += 1
        group.example = min(group.example, found)

    def groups(self) -> tuple[SetAsideGroup, ...]:
        """The groups, largest first."""
        found = []
        for kind, group in sorted(self._groups.items(), key=lambda item: (-item[1].count, item[1].example)):
            _, line, file, example = group.example
            found.append(SetAsideGroup(reason=kind, count=group.count, file=file, line=line, example=example))
        return tuple(found)


def set_aside_text(groups: Sequence[SetAsideGroup], most: int = _MAX_SHOWN) -> str:
    """A line for each of the largest groups: its count, and its first line with the whole reason."""
    lines = [f"  {group.count:,} x {group.file}:{group.line}: {_short(group.example)}" for group in groups[:most]]
    if rest := groups[most:]:
        lines.append(f"  {sum(group.count for group in rest):,} more for {len(rest)} other reasons")
    return "\n".join(lines)


def _short(text: str) -> str:
    text = " ".join(text.split())
    return text if len(text) <= _MAX_CHARACTERS else f"{text[:_MAX_CHARACTERS]} ..."
