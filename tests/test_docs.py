"""README, docs and findings name only links, commands, flags, fields and files that exist."""

import ast
import re
import shlex
import tomllib
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import click
import pytest
import yaml

from workflows.cli.commands import command
from workflows.spec.describe import PAGE_COMMAND, all_fields, fields_page
from workflows.stage import STAGE_NAMES

ROOT = Path(__file__).parents[1]
PAGES = sorted(
    page for place in ("", "docs/", "findings/", "workflows/pipelines/**/") for page in ROOT.glob(f"{place}*.md")
)
FINDINGS = sorted(ROOT.glob("findings/*.sh"))
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
INDENTED = re.compile(r"^    (\S.*)$", re.MULTILINE)
CODE = re.compile(r"(?<!`)(`+)(?!`)(.+?)(?<!`)\1(?!`)", re.DOTALL)

every_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))


@cache
def prose(page: Path) -> str:
    """A page without its blocks of code."""
    return FENCE.sub("", page.read_text())


@cache
def spans(page: Path) -> list[str]:
    """The code between backticks in the prose, each on one line."""
    return [" ".join(found[2].replace(r"\|", "|").split()) for found in CODE.finditer(prose(page))]


@cache
def blocks(page: Path, language: str) -> list[str]:
    return [found[2] for found in FENCE.finditer(page.read_text()) if found[1] == language]


@cache
def command_lines(page: Path) -> list[list[str]]:
    """The words of every command line on a page: lines of code blocks and code in the prose."""
    code = [*spans(page), *INDENTED.findall(prose(page))]
    for block in [*blocks(page, ""), *blocks(page, "bash"), *blocks(page, "sh")]:
        code += block.splitlines()
    found = []
    for line in code:
        line = re.sub(r"^\$ |^\.venv/bin/", "", line).replace("[", "").replace("]", "")  # optional words count too
        line = re.split(r" (?:#|\||>|&&) ?", line)[0]
        if re.match(r"([A-Z_]+=\S+ )*(rayconteur|python3?|pytest|make)( |$)", line):
            words = shlex.split(line)
            while "=" in words[0]:
                words.pop(0)
            found.append(words)
    return found


@cache
def make_targets() -> set[str]:
    return set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))


@cache
def anchors(page: Path) -> set[str]:
    """The anchors that GitHub gives a page's headings."""
    found: set[str] = set()
    for heading in re.findall(r"^#+ (.+)$", prose(page), re.MULTILINE):
        text = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading).lower()
        slug = re.sub(r"[^\w\- ]", "", text).replace(" ", "-")
        found.add(slug if slug not in found else f"{slug}-1")
    return found


@cache
def flags_of(script: Path) -> set[str]:
    """The options that a script adds to argparse, read from its syntax; without argparse, all strings that look like
    options.
    """
    nodes = list(ast.walk(ast.parse(script.read_text())))
    calls = [node for node in nodes if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute)]
    added = [word for call in calls if call.func.attr == "add_argument" for word in call.args]
    words = [node.value for node in added or nodes if isinstance(node, ast.Constant)]
    return {word for word in words if isinstance(word, str) and re.fullmatch(r"--[a-z][\w-]*", word)} | {"--help"}


def all_commands(group: click.Command = command) -> Iterator[click.Command]:
    yield group
    if isinstance(group, click.Group):
        for inner in group.commands.values():
            yield from all_commands(inner)


@every_page
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", CODE.sub("", prose(page))):
        if re.match(r"[a-z]+:", target):
            continue
        name, _, anchor = target.partition("#")
        file = page.parent / name if name else page
        assert file.exists(), target
        assert not anchor or anchor in anchors(file), target


def test_every_page_is_linked() -> None:
    linked = {page.parent / target for page in PAGES for target in re.findall(r"\]\(([^)#\s]+)", prose(page))}
    assert {page for page in PAGES if page.name != "README.md"} - {path.resolve() for path in linked} == set()


@every_page
def test_commands_exist(page: Path) -> None:
    for words in command_lines(page):
        if words[0] == "rayconteur" or words[:3] == ["python", "-m", "workflows"]:
            _check_ours(words[1:] if words[0] == "rayconteur" else words[3:])


def _check_ours(words: list[str]) -> None:
    found: click.Command = command
    while isinstance(found, click.Group) and words and not words[0].startswith("-"):
        name, *words = words
        assert name in found.commands, f"no command {name}"
        found = found.commands[name]
    # Only the parser: it does not check values and runs nothing. It raises for an unknown option.
    _, left, _ = found.make_parser(click.Context(found)).parse_args(list(words))
    assert not left, f"{found.name} takes no {left}"


@every_page
def test_scripts_and_targets_exist(page: Path) -> None:
    for words in command_lines(page):
        if words[0] == "make":
            assert {word for word in words[1:] if "=" not in word and word[0] != "-"} <= make_targets(), words
        elif words[0] == "pytest":
            files = [word.partition("::")[0] for word in words if word.startswith("tests")]
            assert all((ROOT / file).exists() for file in files), words
        elif words[0] in {"python", "python3"} and words[1:] and words[1].endswith(".py"):
            script = ROOT / words[1]
            assert script.is_file(), words
            flags = {word.partition("=")[0] for word in words if word.startswith("--")}
            assert flags <= flags_of(script), words


@every_page
def test_options_in_the_prose_exist(page: Path) -> None:
    known = {name for each in all_commands() for option in each.params for name in option.opts}
    known |= {name for script in ROOT.glob("benchmarks/*.py") for name in flags_of(script)}
    for span in spans(page):
        if option := re.match(r"--[a-z][\w-]*", span):
            assert option[0] in known, span


@cache
def fields() -> dict[str, str]:
    """The type of each field by its path."""
    return {row.path.partition(" ")[0].replace(".0.", "."): row.type for row in all_fields()}


def is_field(path: str) -> bool:
    path = path.replace(".0.", ".")
    parts = path.split(".")
    below = {".".join(parts[:count]) for count in range(1, len(parts))}
    return path in fields() or any("mapping" in fields().get(above, "") for above in below)


SECTIONS = {path.partition(".")[0] for path in fields() if "." in path}


@every_page
def test_fields_exist(page: Path) -> None:
    for span in spans(page):
        named = re.fullmatch(r"([a-z_]+(?:\.[a-z_0-9]+)+)(?:[:=].*)?", span)
        if named and named[1].partition(".")[0] in SECTIONS:
            places = (ROOT / named[1], ROOT / named[1].replace(".", "/"))
            assert is_field(named[1]) or any(place.exists() for place in places), span


@every_page
def test_pipelines_have_fields_that_exist(page: Path) -> None:
    for block in blocks(page, "yaml"):
        shown = yaml.safe_load(block)
        if set(shown) <= SECTIONS | {"name", "store", "base_model"}:
            for path in _paths(shown, ""):
                assert is_field(path), path


def _paths(value: object, path: str) -> Iterator[str]:
    """The dotted paths that a mapping sets; the keys of a search space are paths themselves."""
    if path == "tune.space" and isinstance(value, dict):
        yield from value
    elif isinstance(value, dict) and "mapping" not in fields().get(path, ""):
        for key, inner in value.items():
            yield from _paths(inner, f"{path}.{key}" if path else key)
    elif isinstance(value, list) and value and isinstance(value[0], dict):
        for inner in value:
            yield from _paths(inner, path)
    else:
        yield path


@every_page
def test_files_exist(page: Path) -> None:
    folders = "workflows|models|serve|tests|benchmarks|docs|clusters|findings"
    for span in spans(page):
        if re.fullmatch(rf"(?:{folders})/[\w./*-]*", span):
            assert any(ROOT.glob(span.rstrip("/"))), span


def test_files_of_the_readmes_tree_exist() -> None:
    """File names in the lines of a folder; a line that begins with a space continues the folder before it."""
    tree = (ROOT / "README.md").read_text().partition("\nworkflows/ ")[2].partition("\n```")[0]
    folder = ""
    for line in tree.splitlines()[1:]:
        if not line.startswith(" "):
            folder = line.split()[0]
        for name in re.findall(r"[\w*]+\.(?:py|md|yaml)\b", line.removeprefix(folder)):
            assert any((ROOT / folder).glob(name)) or any(ROOT.glob(name)), f"{folder}{name}"


# Code in CONTRIBUTING.md that names nothing of this project.
NOT_OURS = {"make", "g++", ".venv", '-m ""', "file:line", "torch", "auto", "generate", "max_", "min_"}


@cache
def code_files() -> list[Path]:
    return [file for package in ("workflows", "models", "serve", "tests") for file in (ROOT / package).rglob("*.py")]


@cache
def names_in(file: Path) -> tuple[set[str], set[str]]:
    """The names that a module defines, and all names and environment variables that it contains."""
    defined: set[str] = set()
    used: set[str] = set()
    for node in ast.walk(ast.parse(file.read_text())):
        match node:
            case ast.ClassDef() | ast.FunctionDef() | ast.AsyncFunctionDef():
                defined.add(node.name)
            case ast.arg():
                defined.add(node.arg)
            case ast.Name():
                (defined if isinstance(node.ctx, ast.Store) else used).add(node.id)
            case ast.Attribute():
                (defined if isinstance(node.ctx, ast.Store) else used).add(node.attr)
            case ast.alias():
                used.add(node.name)
            case ast.Constant(value=str(text)) if re.fullmatch(r"RAYCONTEUR_[A-Z_]+", text):
                defined.add(text)
    return defined, defined | used


@cache
def names_anywhere() -> tuple[set[str], set[str]]:
    """`names_in` of all modules together."""
    defined, used = zip(*map(names_in, code_files()), strict=True)
    return set().union(*defined), set().union(*used)


def unknown_names(text: str) -> list[str]:
    """Paths, make targets, fields, classes and functions in a text that do not exist.

    A file may be named without its folder after another file of that folder. A class or function must be defined
    somewhere, and occur in one of the files that the same paragraph, list item or row names.
    """
    found = []
    for item in re.split(r"\n\n|\n(?=\d+\. |- |\|)", text):
        spans_here = [" ".join(each[2].split()) for each in CODE.finditer(item)]
        names, files, folder = [], [], ROOT
        for span in spans_here:
            pattern = re.sub(r"<\w+>", "*", span)
            if "/" in pattern or re.fullmatch(r"[\w*]+\.(py|md|toml|txt|yaml|sh)|workflows|models|serve", pattern):
                there = [] if " " in span else [*ROOT.glob(pattern.rstrip("/"))] or [*folder.glob(pattern)]
                files += [file for path in there for file in ([path] if path.is_file() else path.glob("*.py"))]
                folder = next((path if path.is_dir() else path.parent for path in there), folder)
                found += [] if there or " " in span else [span]
            elif not (span in NOT_OURS or span.startswith("-") or " " in span or is_known(span)):
                names.append(re.sub(r"\(.*\)$|^[\w.]+:", "", span))
            found += [span for target in re.findall(r"^make ([\w-]+)$", span) if target not in make_targets()]
        beside = [names_in(file)[1] for file in files if file.suffix == ".py"]
        defined, used_anywhere = names_anywhere()
        used = set().union(*beside) if beside else used_anywhere
        found += [name for name in names if not (name in defined and name in used)]
    return found


def is_known(span: str) -> bool:
    return span in STAGE_NAMES or span in SECTIONS or is_field(span)


@pytest.mark.parametrize(("old", "new"), [
    ("", ""), ("`WorkerGroup`", "`Gang`"), ("`workflows/stage.py`", "`workflows/stages.py`"),
    ("`plan_cluster.py`", "`plan_clusters.py`"), ("`make test-all`", "`make test-everything`"),
    ("`_write_targets`", "`_write_target`"), ("`run(context)`", "`runs_of(context)`"), ("`Engine`", "`Engines`"),
    ("`serve.engine`", "`serve.engines`"), ("`models/export/<format>.py`", "`models/exports/<format>.py`"),
    ("`_prepare_settings`", "`_kind_of_text`"), ("`RAYCONTEUR_HOSTS`", "`RAYCONTEUR_HOST`"),
])  # fmt: skip
def test_names_in_contributing_exist(old: str, new: str) -> None:
    """Every name in the page exists; a changed name is found."""
    text = prose(ROOT / "CONTRIBUTING.md")
    assert old in text
    unknown = unknown_names(text.replace(old, new) if old else text)
    assert bool(unknown) == bool(old), unknown


def test_the_page_of_fields_matches_the_spec() -> None:
    assert (ROOT / "docs" / "fields.md").read_text() == fields_page(), f"run `{PAGE_COMMAND}`"


def test_the_changelog_begins_with_this_version() -> None:
    newest = re.search(r"^## \[(.+?)\]", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert newest
    assert newest[1] == tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]


@pytest.mark.parametrize("script", FINDINGS, ids=lambda script: script.name)
def test_a_finding_has_its_form(script: Path) -> None:
    """See findings/README.md."""
    first, _, rest = script.read_text().partition("\n")
    assert first == "#!/usr/bin/env bash"
    head = re.match(r"((?:# .+\n)+)#\n((?:# .+\n)+)set -euo pipefail\n", rest)
    assert head, "a sentence, an empty comment line, a paragraph, then `set -euo pipefail`"
    sentence, paragraph = (re.sub(r"\n?# ", " ", part).strip() for part in head.groups())
    assert re.fullmatch(r"[^\n]+\.", sentence)
    assert re.search(r"\d+\.\d+\.\d+", paragraph), "which version"
    assert re.search(r"The script fails if .+ changes\.$", paragraph)
    assert "mktemp -d" in rest
    assert re.search(r"(==|@)\d+\.\d+", rest), "pinned packages"
    assert re.search(r"^diff ", rest, re.MULTILINE)
