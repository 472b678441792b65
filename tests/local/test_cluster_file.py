"""Ray's autoscaler and KubeRay's operator accept the shipped cluster files."""

import os
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml
from ray.autoscaler._private.util import prepare_config, validate_config

ROOT = Path(__file__).parents[2]
LAUNCHED = [ROOT / "cluster.yaml", *sorted((ROOT / "clusters").glob("[!k]*.yaml"))]
MANIFESTS = sorted((ROOT / "clusters").glob("kuberay-*.yaml"))


@pytest.mark.parametrize("file", LAUNCHED, ids=lambda file: file.stem)
def test_ray_accepts_the_file(file):
    config = yaml.safe_load(file.read_text())
    config["file_mounts"] = {}
    validate_config(prepare_config(config))


@pytest.mark.parametrize("file", [file for file in LAUNCHED if file.stem != "on-prem"], ids=lambda file: file.stem)
def test_a_cloud_cluster_keeps_its_head_free_and_its_gpus_from_zero(file):
    config = yaml.safe_load(file.read_text())
    types = config["available_node_types"]
    assert types[config["head_node_type"]]["resources"]["CPU"] == 0
    assert types["gpu-worker"]["min_workers"] == 0
    spot = types["gpu-worker-spot"]
    assert spot["labels"] == {"ray.io/market-type": "spot"}
    assert spot["resources"] == types["gpu-worker"]["resources"]


def test_kuberay_accepts_the_manifests():
    lab = os.environ.get("RAYCONTEUR_KUBERAY")
    if lab is None:
        pytest.skip("needs RAYCONTEUR_KUBERAY: a folder with check_kuberay.py and KubeRay's CRDs in its folder crd")
    done = subprocess.run(
        [sys.executable, f"{lab}/check_kuberay.py", f"{lab}/crd", *map(str, MANIFESTS)],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout
    assert done.stdout.count("\nok ") == len(MANIFESTS), done.stdout


@pytest.mark.parametrize("file", MANIFESTS, ids=lambda file: file.stem)
def test_manifests_name_our_ray_and_our_image(file):
    pinned = dict(line.split("==") for line in (ROOT / "constraints.txt").read_text().split() if "==" in line)
    text = file.read_text()
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    assert f"rayVersion: {pinned['ray']}" in text
    assert f"image: rayconteur:{version}" in text.replace("&image ", "")
