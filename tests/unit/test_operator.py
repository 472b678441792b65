"""The tools that DeepSpeed's operator needs: found in the environment's folder, and named if missing."""

import pytest

from models.training.deepspeed_operator import check_build_tools


@pytest.fixture(autouse=True)
def _without_a_gpu(monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)


def test_a_missing_compiler_is_named_with_the_fix(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ValueError, match=r"needs g\+\+.*apt-get install g\+\+"):
        check_build_tools()


def test_the_environments_own_ninja_is_found_without_activating_it(monkeypatch, tmp_path):
    compiler = tmp_path / "g++"
    compiler.touch(mode=0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    check_build_tools()
