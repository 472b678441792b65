"""What a job uploads, and what the cluster must have installed."""

import json
import subprocess
import sys
import zipfile
from http.server import BaseHTTPRequestHandler, HTTPServer
from importlib.metadata import version
from pathlib import Path
from threading import Thread
from types import SimpleNamespace

import pytest
import yaml

from workflows.corpus.files.sources import source_files
from workflows.jobs import package as shipping
from workflows.jobs.client import Jobs
from workflows.jobs.package import missing, pack, pinned
from workflows.spec.errors import SpecError
from workflows.spec.paths import local_paths
from workflows.spec.read import read_spec
from workflows.stage import StageFailed


@pytest.fixture
def written(tmp_path):
    """Writes a pipeline file and files beside it; returns the spec as `submit` reads it, and the folder."""
    beside = tmp_path / "here"
    (beside / "data").mkdir(parents=True)
    (beside / "data" / "a.jsonl").write_text('{"messages": []}\n')
    (beside / "data" / "b.jsonl").write_text('{"messages": [1]}\n')
    (beside / "questions.jsonl").write_text("{}\n")

    def write(**fields):
        values = {"name": "shop", "store": "s3://bucket/store", "base_model": "random:tiny-llama",
                  "data": {"sources": [{"path": "data/*.jsonl"}]}, **fields}  # fmt: skip
        (beside / "p.yaml").write_text(yaml.safe_dump(values))
        return read_spec(beside / "p.yaml", for_job=True), beside

    return write


def test_files_beside_the_pipeline_are_uploaded_and_others_are_named(written, tmp_path):
    spec, beside = written(
        evaluate={"questions": "questions.jsonl"},
        data={"sources": [{"path": "data/*.jsonl"}, {"path": "/shared/more.jsonl"}, {"path": "s3://bucket/x.jsonl"}]},
    )
    packed = tmp_path / "packed"
    packed.mkdir()
    pack(spec, beside, packed)
    there = read_spec(packed / "pipeline.yaml")
    assert there.cluster.address == "auto"
    files = source_files(
        there.model_copy(update={"data": there.data.model_copy(update={"sources": there.data.sources[:1]})})
    )
    assert [file.path.rpartition("/")[2] for file in files] == ["a.jsonl", "b.jsonl"]
    assert all(file.path.startswith(str(packed)) for file in files)
    assert [source.path for source in there.data.sources[1:]] == ["/shared/more.jsonl", "s3://bucket/x.jsonl"]
    assert there.evaluate.questions.startswith(str(packed))


def test_a_job_keeps_what_its_machine_cannot_find_out_of_the_cluster(written, tmp_path):
    packed = tmp_path / "packed"
    packed.mkdir()
    cluster = {"address": "http://head:8265", "num_cpus": 4, "scales_to": {"cpus": 64}, "price_per_hour": 3.5}
    pack(*written(cluster=cluster), packed)
    there = read_spec(packed / "pipeline.yaml").cluster
    assert (there.address, there.num_cpus, there.scales_to.cpus, there.price_per_hour) == ("auto", None, 64, 3.5)


def test_a_packed_job_knows_its_version(written, tmp_path):
    packed = tmp_path / "packed"
    packed.mkdir()
    pack(*written(), packed)
    code = "import workflows, importlib.metadata as m; print(workflows.__file__, m.version('rayconteur'))"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=packed, env={"PYTHONPATH": str(packed)}, capture_output=True, text=True
    )
    assert done.stdout.split() == [str(packed / "workflows" / "__init__.py"), version("rayconteur")], done.stderr


def test_settings_of_a_run_change_with_its_files_and_not_with_its_folder(written, tmp_path):
    def told_apart_by(folder):
        folder.mkdir()
        return pack(*written(), folder)

    first = told_apart_by(tmp_path / "1")
    assert told_apart_by(tmp_path / "2") == first
    (tmp_path / "here" / "data" / "b.jsonl").write_text("changed\n")
    assert told_apart_by(tmp_path / "3") != first


def test_large_files_and_missing_ones_are_refused_by_field(written, tmp_path, monkeypatch):
    spec, beside = written()
    monkeypatch.setattr(shipping, "MAX_SHIPPED", 20)
    (tmp_path / "1").mkdir()
    with pytest.raises(StageFailed, match=r"^data\.sources\.0\.path: .* have .* MB, and a job uploads at most"):
        pack(spec, beside, tmp_path / "1")
    for file in (beside / "data").iterdir():
        file.unlink()
    (tmp_path / "2").mkdir()
    with pytest.raises(StageFailed, match=r"^data\.sources\.0\.path: nothing found at"):
        pack(spec, beside, tmp_path / "2")


IGNORED = {
    "data/.gitignore": "*\n",  # as DVC writes it
    "rules/.gitignore": "secret*\n",
    "rules/.rayignore": "*.md\n",
    "rules/secret.md": "The shop opens at nine.",
    "suite/.gitignore": "*.jsonl",
    "suite/a.jsonl": '{"question": "When?", "facts": ["nine"]}\n',
    "suite/venv/.git/__pycache__/b.txt": "Ray leaves these folders out",
    "prompt.txt": "Which?",
    "template.jinja": "{{ messages }}",
}
NAMES_IGNORED = {
    "evaluate": {"questions": "questions.jsonl", "suites": [{"path": "suite"}], "judge": {
        "url": "http://j", "model": "m", "prompt": "prompt.txt"}},
    "serve": {"knowledge": {"path": "rules"}}, "data": {
        "sources": [{"path": "data/*.jsonl"}, {"path": "linked.jsonl"}], "chat_template": "template.jinja"},
}  # fmt: skip


@pytest.fixture
def uploaded(monkeypatch, tmp_path):
    """Submits; returns what Ray is given as the working directory, unpacked, and the notes."""

    def submit(spec, beside):
        asked, notes = {}, []

        def submit_job(**options):
            archive = options["runtime_env"]["working_dir"]
            assert zipfile.is_zipfile(archive), "of a folder, Ray leaves out what its .gitignore names"
            asked["bytes"] = Path(archive).read_bytes()
            zipfile.ZipFile(archive).extractall(tmp_path / "there")

        jobs = object.__new__(Jobs)
        monkeypatch.setattr(jobs, "_client", SimpleNamespace(submit_job=submit_job, list_jobs=list), raising=False)
        monkeypatch.setattr(jobs, "_environment", lambda say: {})
        monkeypatch.setattr(jobs, "find", lambda name: name)
        jobs.submit(spec, beside, "deploy", say=notes.append)
        return tmp_path / "there", notes, asked["bytes"]

    return submit


def test_what_the_pipeline_names_travels_also_if_git_ignores_it(written, uploaded, tmp_path):
    beside = tmp_path / "here"
    for name, content in IGNORED.items():
        (beside / name).parent.mkdir(parents=True, exist_ok=True)
        (beside / name).write_text(content)
    (beside / ".gitignore").parent.mkdir(exist_ok=True)
    (beside / ".gitignore").write_text("*\n")
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache" / "blob").write_text("{}\n")
    written()
    (beside / "linked.jsonl").symlink_to(tmp_path / "cache" / "blob")
    there, notes, content = uploaded(*written(**NAMES_IGNORED))
    assert notes == []
    job = read_spec(there / "pipeline.yaml")
    named = local_paths(job)
    assert set(named) == {
        "data.sources.0.path", "data.sources.1.path", "data.chat_template", "evaluate.questions",
        "evaluate.suites.0.path", "evaluate.judge.prompt", "serve.knowledge.path",
    }  # fmt: skip
    assert all(Path(path).is_relative_to(there.resolve()) for path in named.values())
    assert [Path(file.path).name for file in source_files(job)] == ["a.jsonl", "b.jsonl", "linked.jsonl"]
    for field in ("data.chat_template", "evaluate.questions", "evaluate.judge.prompt"):
        assert Path(named[field]).is_file()
    assert (Path(named["serve.knowledge.path"]) / "secret.md").is_file()
    assert (Path(named["evaluate.suites.0.path"]) / "a.jsonl").is_file()
    assert len(list(Path(named["evaluate.suites.0.path"]).rglob("b.txt"))) == 1
    assert uploaded(*written(**NAMES_IGNORED))[2] == content  # Ray uploads equal content once


def test_what_is_not_uploaded_is_said_before(written, uploaded, tmp_path):
    (tmp_path / "elsewhere.jsonl").write_text("{}\n")
    sources = [{"path": "data/*.jsonl"}, {"path": "../elsewhere.jsonl"}, {"path": "/only/on/the/cluster.jsonl"}]
    _, notes, _ = uploaded(*written(data={"sources": sources}))
    assert notes == [
        f"data.sources.1.path: {tmp_path}/elsewhere.jsonl is not in the pipeline file's folder, and is not uploaded; "
        "all nodes must have this path"
    ]


@pytest.mark.parametrize(("field", "value", "said"), [
    ("store", "rayconteur-store", r"p\.yaml:\d+: store: got 'rayconteur-store', a folder of this machine"),
    ("store", "~/store", r"p\.yaml:\d+: store: got '~/store', a folder of this machine"),
    ("store", "s3://key:secret@bucket/x", r"p\.yaml:\d+: store: contains credentials"),
    ("evaluate", {"questions": "s3://key:secret@b/q.jsonl"}, r"p\.yaml:\d+: evaluate\.questions: contains cred"),
    ("serve", {"adapters": {"one": "s3://key:secret@b/one"}}, r"p\.yaml:\d+: serve\.adapters\.one: contains cred"),
    ("data", {"sources": [{"path": "s3://key:secret@b/x.jsonl"}]}, r"p\.yaml:\d+: data\.sources\.0\.path: contains"),
])  # fmt: skip
def test_what_cannot_run_as_a_job_is_refused_with_its_line(written, field, value, said):
    with pytest.raises(SpecError, match=said) as refused:
        written(**{field: value})
    assert "secret@" not in str(refused.value)


def test_what_a_cluster_lacks_is_installed_for_the_job():
    here = dict(line.split("==") for line in pinned())
    assert {"torch", "transformers", "deepspeed", "click"} <= set(here)
    assert "ray" not in here
    everything = {**here, "ray": "2.60.0"}
    assert missing(everything) == []
    assert missing({**everything, "torch": "2.1.0"}) == ["torch>=2.13"]
    del everything["deepspeed"]
    assert missing(everything) == ["deepspeed>=0.19"]


def answering(ray_version):
    """A dashboard of another Ray version, with the routes that a job client calls first."""

    class Answer(BaseHTTPRequestHandler):
        def do_GET(self):
            content = json.dumps({"version": "4", "ray_version": ray_version, "ray_commit": "", "session_name": ""})
            self.send_response(200)
            self.end_headers()
            self.wfile.write(content.encode())

        def log_message(self, *_):
            pass

    server = HTTPServer(("127.0.0.1", 0), Answer)
    Thread(target=server.serve_forever, daemon=True).start()
    return server


@pytest.mark.parametrize(
    ("ray_version", "said"), [("2.40.0", "runs Ray 2.40.0; rayconteur"), (None, "no Ray dashboard")]
)
def test_another_ray_and_none_at_all_are_named(written, tmp_path, ray_version, said):
    written(store="/shared/store")
    server = answering(ray_version)
    address = f"http://127.0.0.1:{server.server_port}"
    if ray_version is None:
        server.server_close()
    command = [sys.executable, "-m", "workflows", "submit", str(tmp_path / "here" / "p.yaml"), "--address", address]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=100)
    finally:
        server.shutdown()
        server.server_close()
    assert done.returncode == 1
    assert said in done.stderr
    assert "Traceback" not in done.stderr + done.stdout
