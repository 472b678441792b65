"""Write the results of clients as docs/clients.md."""

import re
import tomllib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from endpoint import ENDPOINTS
from installed import Client

_HERE = Path(__file__).parent
_PAGE = _HERE.parent.parent / "docs" / "clients.md"
_MAX_SAID = 220

Results = Mapping[str, Mapping[str, Mapping[str, Mapping[str, Any]]]]
"""client, endpoint, usage, outcome"""

_HEAD = """# Clients

Usages from each client's documentation, in our own words, tested against this endpoint; `make test-clients` runs them
and writes this page. [clients.toml](../tests/clients/clients.toml) has the versions; each client has its own
environment. The endpoints serve SmolLM2-135M behind the front and API that `deploy` starts, without Ray:

| | |
|---|---|
| `torch` | float32, only the first two of 30 layers, for speed; a chat template that writes tools |
| `openvino` | bf16, all layers, the same template |
| `demo` | bf16, all layers, with the demo's own template, which does not write tools |

SmolLM2 was not trained on tools. If a loop needs a voluntary call, the conversation scripts the reply
(`[[add({"a": 2, "b": 3}) => It is 5.]]`, [scripted.py](../tests/clients/scripted.py)): the tokens are those of the
script, everything else (prompt, parsing of calls, API, front, client) is real, but no engine and no grammar takes
part in that reply. The model generates all other replies, including required calls and formats.

Shares refer to the usages that ran at that endpoint; an empty cell means that the usage did not run there.
"""


def write_table(clients: Iterable[Client], results: Results) -> list[str]:
    """Write the page; returns the usages that fail without an entry in verdicts.toml."""
    verdicts = tomllib.loads((_HERE / "verdicts.toml").read_text()).get("verdict", [])
    shown = [client for client in clients if client.name in results]
    unexplained: list[str] = []
    parts = [_HEAD, _sums(shown, results)]
    for client in shown:
        parts.append(_section(client, results[client.name], verdicts, unexplained))
    _PAGE.write_text("\n".join(parts))
    return unexplained


def _sums(clients: list[Client], results: Results) -> str:
    rows = ["| client | usages | " + " | ".join(ENDPOINTS) + " |", "|---|---|" + "---|" * len(ENDPOINTS)]
    total, works = 0, dict.fromkeys(ENDPOINTS, 0)
    tried = dict.fromkeys(ENDPOINTS, 0)
    for client in clients:
        found = results[client.name]
        names = _usages(found)
        total += len(names)
        cells = []
        for endpoint in ENDPOINTS:
            lines = found.get(endpoint, {}).values()
            count = sum(line["works"] for line in lines)
            works[endpoint] += count
            tried[endpoint] += len(lines)
            cells.append(str(count) if lines else "")
        rows.append(f"| {_title(client)} | {len(names)} | " + " | ".join(cells) + " |")
    shares = [f"{works[name]} ({works[name] / (tried[name] or 1):.0%})" for name in ENDPOINTS]
    rows.append(
        f"| **{len(clients)} clients** | **{total}** | " + " | ".join(f"**{share}**" for share in shares) + " |"
    )
    return "\n".join(rows) + "\n"


def _section(
    client: Client, found: Mapping[str, Mapping[str, Any]], verdicts: list[dict[str, str]], unexplained: list[str]
) -> str:
    rows = [f"## {_title(client)}", "", "| usage | " + " | ".join(ENDPOINTS) + " | |"]
    rows.append("|---|" + "---|" * len(ENDPOINTS) + "---|")
    for name in _usages(found):
        lines = {endpoint: found[endpoint][name] for endpoint in ENDPOINTS if name in found.get(endpoint, {})}
        cells = [_mark(lines.get(endpoint)) for endpoint in ENDPOINTS]
        notes: list[str] = []
        for endpoint, line in lines.items():
            if line["works"]:
                continue
            said, why = _sentence(line["said"]), _verdict(client.name, name, endpoint, line["said"], verdicts)
            if not why:
                unexplained.append(f"{client.name}, {endpoint}, {name}: {said}")
            note = f"{_in_cell(said)}{' **' + why + '**' if why else ''}"
            if note not in notes:
                notes.append(note)
        rows.append(f"| {_in_cell(name)} | " + " | ".join(cells) + f" | {'<br>'.join(notes)} |")
    return "\n".join(rows) + "\n"


def _title(client: Client) -> str:
    return " + ".join(client.packages)


def _usages(found: Mapping[str, Mapping[str, Any]]) -> list[str]:
    return list(dict.fromkeys(name for endpoint in ENDPOINTS for name in found.get(endpoint, {})))


def _mark(line: Mapping[str, Any] | None) -> str:
    return "" if line is None else "yes" if line["works"] else "no"


def _sentence(said: str) -> str:
    """The endpoint's own error message inside a client's, if there is one."""
    found = re.search(r"""['"]message['"]: (['"])(.+?)\1, ['"](?:type|param|code)""", said) or re.search(
        r'"message": ?(")(.+?)"', said
    )
    text = " ".join((found[2] if found else said.split(" | ")[0]).split())
    text = text.partition(" Traceback")[0]  # it contains paths of this machine
    return text if len(text) <= _MAX_SAID else text[: _MAX_SAID - 3] + "..."


def _verdict(client: str, usage: str, endpoint: str, said: str, verdicts: list[dict[str, str]]) -> str:
    """The verdict of the first rule whose conditions all hold; see verdicts.toml."""
    for rule in verdicts:
        if all(
            re.search(rule[key], value)
            for key, value in (("client", client), ("usage", usage), ("endpoint", endpoint), ("said", said))
            if key in rule
        ):
            return rule["why"]
    return ""


def _in_cell(text: str) -> str:
    return text.replace("|", "\\|").replace("<", "&lt;").replace("[[", "\\[\\[")
