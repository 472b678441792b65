"""cluster.yaml is one that Ray's own autoscaler accepts."""

from pathlib import Path

import yaml
from ray.autoscaler._private.util import fillout_defaults, validate_config

ROOT = Path(__file__).parents[2]


def test_ray_accepts_the_cluster_file():
    config = yaml.safe_load((ROOT / "cluster.yaml").read_text())
    config["file_mounts"] = {}
    validate_config(fillout_defaults(config))
    types = config["available_node_types"]
    assert types[config["head_node_type"]]["resources"]["CPU"] == 0
    assert types["gpu-worker"]["min_workers"] == 0
