"""The endpoint as an application for Ray Serve config files, such as KubeRay's RayService.

    import_path: workflows.rayservice:endpoint
    args: {store: s3://bucket/rayconteur, release: 563cdb6db661bcfa, serve: {max_replicas: 8}}

Requests come through Ray Serve's own proxies, because Kubernetes probes those for a node's health.
"""

from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel, ConfigDict

from workflows.endpoint.application import application, chosen_engine, with_winner
from workflows.figures import OptimizeFigures
from workflows.record import JsonObject
from workflows.spec import PipelineSpec
from workflows.stage import StageFailed, check_gate
from workflows.store import Store


class Served(BaseModel):
    """The arguments of the application."""

    model_config = ConfigDict(extra="forbid")

    store: str
    """the store, as in the pipeline file"""
    release: str
    """the key of a finished `optimize`"""
    serve: JsonObject = {}
    """fields of `serve` to override from the run that made the release"""
    force: bool = False
    """serve a release whose scorecard did not pass"""


def endpoint(args: Served) -> Any:
    """Build the application; raises StageFailed for a release that does not exist or did not pass."""
    store = Store(args.store)
    release = store.find("optimize", args.release)
    made_by = [run for run in store.runs() if run.key_of("optimize") == args.release]
    if release is None or not made_by:
        known = ", ".join(artifact.key for artifact in store.all_of("optimize")) or "none"
        raise StageFailed(f"args.release: the store has no release {args.release!r}; it has: {known}")
    cards = [card for card in store.all_of("evaluate") if card.inputs["train"] == release.inputs["train"]]
    if not args.force:
        where = f"args.release: {args.release} has not passed"
        check_gate(cards[-1] if cards else None, where, "set force: true to serve it anyway")
    made, search = made_by[-1].spec, made_by[-1].key_of("tune")
    serve = made["serve"]
    assert isinstance(serve, Mapping)
    spec = PipelineSpec.model_validate({**made, "serve": {**serve, **args.serve}})
    if "sampling" not in args.serve and search is not None:
        spec = with_winner(spec, store.find("tune", search))
    engine, _ = chosen_engine(spec.serve, OptimizeFigures.from_json(release.figures).openvino)
    return application(spec, store, release, engine, behind_proxy=True)
