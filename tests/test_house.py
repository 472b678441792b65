"""Which libraries are imported when, tested in new processes; and every shipped pipeline file parses."""

import ast
import subprocess
import sys
import tomllib
from importlib.metadata import distributions, metadata
from pathlib import Path

import pytest
from packaging.specifiers import SpecifierSet
from test_layers import imports

from workflows.spec.read import read_spec
from workflows.stage import STAGE_NAMES

ROOT = Path(__file__).parents[1]
PIPELINES = sorted((ROOT / "workflows" / "pipelines").rglob("*.yaml"))
HEAVY = {"ray", "torch", "transformers", "deepspeed", "datasets"}


def loaded_by(code: str, *arguments: str) -> set[str]:
    """The top-level modules that a new Python has imported after `code`, which may exit with any code."""
    script = f"import sys\ntry:\n    {code}\nexcept SystemExit:\n    pass\nprint('\\n' + ' '.join(sys.modules))"
    done = subprocess.run(
        [sys.executable, "-c", script, *arguments], capture_output=True, text=True, check=True, cwd=ROOT
    )
    return {name.partition(".")[0] for name in done.stdout.splitlines()[-1].split()}


def modules_in(folder: str) -> list[str]:
    files = sorted((ROOT / folder).rglob("*.py"))
    return [".".join(file.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__") for file in files]


@pytest.mark.parametrize("code", [
    "import workflows.spec.pipeline",
    "import serve.client",
    "import runpy; runpy.run_module('workflows', run_name='__main__')",
    "from workflows.cli.commands import command; command(['spec'])",
    "import workflows.runs.run, workflows.runs.plan, workflows.runs.records",
    "import workflows.store, workflows.corpus.show, workflows.stages.deploy, workflows.endpoint.application",
])  # fmt: skip
def test_these_answer_without_the_heavy_libraries(code: str) -> None:
    loaded = loaded_by(code, "--help")
    assert loaded & {"workflows", "serve"}
    assert not loaded & HEAVY


def test_a_mistake_in_a_pipeline_file_is_answered_without_the_heavy_libraries(tmp_path: Path) -> None:
    file = tmp_path / "pipeline.yaml"
    file.write_text("name: x\n")
    assert not loaded_by(f"from workflows.cli.commands import command; command(['run', {str(file)!r}])") & HEAVY


def test_the_protocol_needs_pydantic_alone() -> None:
    assert not loaded_by("import serve.protocol.requests") & (HEAVY | {"fastapi", "yaml", "workflows", "models"})


def test_the_process_of_an_engine_starts_without_torch() -> None:
    loaded = loaded_by("import serve.engines.openvino_process as p; p.import_openvino(); import openvino_genai")
    assert "openvino_genai" in loaded
    assert not loaded & {*HEAVY, "fastapi"}


def test_the_process_that_tries_grammars_starts_with_little() -> None:
    loaded = loaded_by("import serve.grammar.process")
    assert "llguidance" in loaded
    assert not loaded & {*HEAVY, "fastapi", "pydantic", "numpy"}


def test_models_and_serve_are_imported_without_ray() -> None:
    modules = [name for name in modules_in("models") + modules_in("serve") if not name.startswith("serve.deployment")]
    loaded = loaded_by("import " + ", ".join(modules))
    assert "torch" in loaded
    assert not loaded & {"ray", "workflows"}


def test_stages_import_no_other_stage() -> None:
    for stage in STAGE_NAMES:
        imported = imports(f"workflows.stages.{stage}")
        assert not {name for name in imported if name.startswith("workflows.stages.")}, stage


def test_import_serve_is_never_ambiguous() -> None:
    for folder in ("workflows", "models", "serve", "tests"):
        for file in (ROOT / folder).rglob("*.py"):
            for node in ast.walk(ast.parse(file.read_text())):
                if isinstance(node, ast.Import):
                    assert "serve" not in {alias.name for alias in node.names}, file
                elif isinstance(node, ast.ImportFrom) and node.module == "ray":
                    assert "serve" not in {alias.asname or alias.name for alias in node.names}, file


def test_both_commands_are_the_same_program() -> None:
    installed = Path(sys.executable).with_name("rayconteur")
    helps = [
        subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT).stdout
        for command in ([installed, "--help"], [sys.executable, "-m", "workflows", "--help"])
    ]
    assert helps[0] == helps[1]
    assert [helps[0].count(f"\n  {stage} ") for stage in STAGE_NAMES] == [1] * len(STAGE_NAMES)


def test_there_are_shipped_pipelines() -> None:
    assert PIPELINES


@pytest.mark.parametrize("file", PIPELINES, ids=lambda file: file.name)
def test_a_shipped_pipeline_parses_and_its_files_are_there(file: Path) -> None:
    spec = read_spec(file)
    assert all(Path(source.path).is_file() for source in spec.data.sources)
    assert spec.evaluate.questions is None or Path(spec.evaluate.questions).is_file()
    assert all(Path(suite.path).exists() for suite in spec.evaluate.suites)


def test_the_pinned_packages_install_on_every_supported_python() -> None:
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pinned = {line.partition("==")[0] for line in lines if "==" in line and not line.startswith("#")}
    asked = SpecifierSet(metadata("rayconteur")["Requires-Python"])
    let_in = [version for version in (f"3.{minor}.5" for minor in range(8, 20)) if asked.contains(version)]
    assert let_in
    for distribution in distributions():
        needs = distribution.metadata["Requires-Python"]
        if distribution.metadata["Name"] in pinned and needs:
            assert all(SpecifierSet(needs).contains(version) for version in let_in), distribution.metadata["Name"]


@pytest.mark.parametrize("package", ["workflows", "models", "serve"])
def test_a_wheel_holds_every_file_of_a_package(package: str) -> None:
    data = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["package-data"][package]
    by_pattern = {pattern: set((ROOT / package).glob(pattern)) for pattern in data}
    assert all(by_pattern.values()), by_pattern
    there = {file for file in (ROOT / package).rglob("*") if file.is_file() and file.suffix != ".pyc"}
    code = {file for file in there if file.suffix == ".py"}
    assert there - code - set().union(*by_pattern.values()) == set()
    # setuptools finds packages by this file.
    assert {file.parent for file in code if not (file.parent / "__init__.py").is_file()} == set()
    assert ROOT / package / "py.typed" in there
