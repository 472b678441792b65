"""The house rules: who imports what, looked at in fresh processes; and every shipped pipeline parses."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

from workflows.spec_file import read_spec

ROOT = Path(__file__).parents[1]
PIPELINES = sorted((ROOT / "workflows" / "pipelines").rglob("*.yaml"))
HEAVY = {"ray", "torch", "transformers", "deepspeed", "datasets"}


def loaded_by(code: str, *arguments: str) -> set[str]:
    """The top-level modules that a fresh Python has loaded after `code`."""
    script = f"import sys\ntry:\n    {code}\nexcept SystemExit:\n    pass\nprint('\\n' + ' '.join(sys.modules))"
    done = subprocess.run(
        [sys.executable, "-c", script, *arguments], capture_output=True, text=True, check=True, cwd=ROOT
    )
    return {name.partition(".")[0] for name in done.stdout.splitlines()[-1].split()}


def modules_in(folder: str) -> list[str]:
    files = sorted((ROOT / folder).rglob("*.py"))
    return [".".join(file.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__") for file in files]


def imports_of(file: Path) -> set[str]:
    """All modules that a file imports anywhere in it."""
    found = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return found


@pytest.mark.parametrize("code", [
    "import workflows.spec",
    "import serve.protocol",
    "import serve.client",
    "from workflows.cli import command; command(['--help'])",
    "from workflows.cli import command; command(['plan', 'no-such-file.yaml'])",
    "from workflows.cli import command; command(['spec'])",
    "import workflows.pipeline, workflows.store, workflows.plan, workflows.deploy",
])  # fmt: skip
def test_these_answer_without_the_heavy_libraries(code):
    assert not loaded_by(code) & HEAVY


def test_models_never_import_ray():
    assert "ray" not in loaded_by("import " + ", ".join(modules_in("models")))


def test_only_the_serve_app_imports_ray():
    others = [module for module in modules_in("serve") if module != "serve.app"]
    assert "ray" not in loaded_by("import " + ", ".join(others))
    assert "ray" in loaded_by("import serve.app")


@pytest.mark.parametrize(
    ("folder", "forbidden"), [("models", {"ray", "workflows", "serve"}), ("serve", {"workflows"})]
)
def test_imports_point_one_way(folder, forbidden):
    for file in (ROOT / folder).rglob("*.py"):
        tops = {name.partition(".")[0] for name in imports_of(file)}
        if file.name == "app.py":
            tops -= {"ray"}
        assert not tops & forbidden, file


def test_stages_import_no_other_stage():
    stages = {"prepare", "train", "evaluate", "optimize", "deploy"}
    allowed = {("optimize", "train")}  # the reader of the corpus
    for stage in stages:
        imported = imports_of(ROOT / "workflows" / f"{stage}.py")
        others = {name.split(".")[1] for name in imported if name.startswith("workflows.")} & (stages - {stage})
        assert {(stage, other) for other in others} <= allowed
        assert ("serve.app" in imported) == (stage == "deploy")


def test_nothing_says_import_serve():
    """It would mean Ray's `serve` to one reader and our package to another."""
    for folder in ("workflows", "models", "serve", "tests"):
        for file in (ROOT / folder).rglob("*.py"):
            plain = [node for node in ast.walk(ast.parse(file.read_text())) if isinstance(node, ast.Import)]
            assert not any(alias.name == "serve" for node in plain for alias in node.names), file


def test_both_commands_are_the_same_program():
    installed = Path(sys.executable).with_name("rayconteur")
    helps = [
        subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT).stdout
        for command in ([installed, "--help"], [sys.executable, "-m", "workflows", "--help"])
    ]
    assert helps[0] == helps[1]
    assert "prepare" in helps[0]


def test_there_are_shipped_pipelines():
    assert PIPELINES


@pytest.mark.parametrize("file", PIPELINES, ids=lambda file: file.name)
def test_a_shipped_pipeline_parses_and_its_files_are_there(file):
    spec = read_spec(file)
    assert all(Path(source.path).is_file() for source in spec.data.sources)
    assert spec.evaluate.questions is None or Path(spec.evaluate.questions).is_file()


def test_the_readme_names_every_file_of_the_house():
    readme = (ROOT / "README.md").read_text()
    for folder in ("workflows", "models", "serve"):
        for file in (ROOT / folder).glob("*.py"):
            if not file.name.startswith("__"):
                assert file.name in readme, file
