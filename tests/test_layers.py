"""Who may import whom: a folder imports only folders of lower layers, and no two files import each other.

All imports count, also those inside functions, those for type checkers, and modules loaded by `importlib`.
"""

import ast
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

# From top to bottom: a folder imports itself and folders of lower lines, none of its own line.
LAYERS = {
    "workflows": [
        "cli",
        "runs",
        "stages",
        "search",
        "training scorecard release jobs rayservice",
        "judge",
        "suites",
        "lm_eval",
        "corpus endpoint json_lines",
        "cluster stage",
        "spec",
        "store progress figures",
        "record pipelines lease pace",
    ],
    "serve": [
        "deployment",
        "api front",
        "responses_api access",
        "replies",
        "grammar",
        "parsing",
        "metrics",
        "engines",
        "protocol client log child_process knowledge",
    ],
    "models": [
        "measures",
        "training",
        "objectives export",
        "base",
        "kernels exchange scorers",
        "packing chat generation files text statistics",
        "mixture",
        "mixture_law",
        "trees errors",
    ],
}
# A package imports its own modules and those of packages after it.
PACKAGES = ("workflows", "serve", "models")
RAY = ("workflows", "serve.deployment")


@cache
def files() -> dict[str, Path]:
    """All modules, by their dotted names."""
    found = {}
    for package in PACKAGES:
        for file in sorted((ROOT / package).rglob("*.py")):
            parts = file.relative_to(ROOT).with_suffix("").parts
            found[".".join(parts).removesuffix(".__init__")] = file
    return found


def _names(tree: ast.AST) -> Iterator[str]:
    """Dotted names of what code imports, modules or their contents; `*` stands for a part known only at run time."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Call) and node.args:
            called = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
            if called in {"import_module", "__import__"}:
                yield _loaded(node.args[0])


def _loaded(name: ast.expr) -> str:
    if isinstance(name, ast.JoinedStr):
        return "".join(str(part.value) if isinstance(part, ast.Constant) else "*" for part in name.values)
    return str(name.value) if isinstance(name, ast.Constant) else ""  # a parameter: not known here


@cache
def imports(module: str) -> frozenset[str]:
    """The modules of this project that a module imports, and `ray` if it does."""
    found = set()
    for name in _names(ast.parse(files()[module].read_text())):
        if "*" in name:
            pattern = re.compile(re.escape(name).replace(r"\*", r"[\w.]*"))
            found |= {other for other in files() if pattern.fullmatch(other)}
        elif name.partition(".")[0] == "ray":
            found.add("ray")
        else:
            found |= {own for own in (name, name.rpartition(".")[0]) if own in files() and own not in PACKAGES}
    # `from package import module` names both; the package itself counts only if a name is imported from it.
    return frozenset(name for name in found if name != module and not any(o.startswith(f"{name}.") for o in found))


def rank(module: str) -> int:
    """The layer of a module's folder in its package."""
    package, _, rest = module.partition(".")
    folder = rest.partition(".")[0]
    for number, folders in enumerate(reversed(LAYERS[package])):
        if folder in folders.split():
            return number
    raise AssertionError(f"{module}: no layer has the folder {folder!r}; add it to one in {Path(__file__).name}")


def folder_of(module: str) -> str:
    return ".".join(module.split(".")[:2])


def circles(graph: dict[str, frozenset[str]]) -> list[list[str]]:
    """Strongly connected components of the import graph (Tarjan 1972)."""
    numbers: dict[str, int] = {}
    lowest: dict[str, int] = {}
    stack: list[str] = []
    found: list[list[str]] = []

    def visit(name: str) -> None:
        numbers[name] = lowest[name] = len(numbers)
        stack.append(name)
        for other in graph[name]:
            if other not in numbers:
                visit(other)
            if other in stack:
                lowest[name] = min(lowest[name], lowest[other])
        if lowest[name] == numbers[name]:
            place = stack.index(name)
            found.append(sorted(stack[place:]))
            del stack[place:]

    for name in graph:
        if name not in numbers:
            visit(name)
    return [group for group in found if len(group) > 1]


MODULES = [name for name in files() if "." in name and name != "workflows.__main__"]


@pytest.mark.parametrize("module", MODULES)
def test_a_module_imports_its_own_folder_and_folders_below(module: str) -> None:
    for other in imports(module) - {"ray"}:
        own, its = module.partition(".")[0], other.partition(".")[0]
        assert PACKAGES.index(own) <= PACKAGES.index(its), f"{module} imports {other}"
        if own == its and folder_of(module) != folder_of(other):
            assert rank(module) > rank(other), f"{module} imports {other}"


def test_every_module_has_a_layer() -> None:
    for module in MODULES:
        rank(module)


def test_no_two_modules_import_each_other() -> None:
    graph = {name: frozenset(imports(name) & files().keys()) for name in files()}
    assert circles(graph) == []


def test_only_some_folders_import_ray() -> None:
    knowing = {name for name in files() if "ray" in imports(name)}
    assert knowing
    assert {name for name in knowing if not f"{name}.".startswith(tuple(f"{folder}." for folder in RAY))} == set()


def test_packages_hold_no_code() -> None:
    """Except for packages from which users import."""
    open_to_all = {"workflows.spec", "models.chat"}
    for name, file in files().items():
        if file.name == "__init__.py" and name not in open_to_all:
            body = ast.parse(file.read_text()).body
            assert [type(node) for node in body] == [ast.Expr], f"{file}: a docstring alone"


def test_the_readme_has_the_tree() -> None:
    """The tree has a line for each folder of code and each file beside them, and no line for anything else."""
    text = (ROOT / "README.md").read_text().partition("## The house")[2].partition("\n```\n")[2].partition("```")[0]
    named = {line.split()[0] for line in text.splitlines() if line.startswith(PACKAGES)}
    there = set()
    for package in PACKAGES:
        folders = {file.parent for file in (ROOT / package).rglob("*.py")}
        there |= {f"{folder.relative_to(ROOT)}/" for folder in folders}
        there |= {str(file.relative_to(ROOT)) for file in (ROOT / package).glob("*.py") if file.stem[:2] != "__"}
    assert named == there


def test_one_file_alone_knows_rays_private_modules() -> None:
    private = re.compile(r"ray(\.\w+)*\._\w")
    knowing = {name for name, file in files().items() if any(map(private.match, _names(ast.parse(file.read_text()))))}
    assert knowing == {"workflows.cluster.ray_private"}
