"""deploy: serves the release at an endpoint, with Ray Serve.

    rayconteur deploy PIPELINE

Writes to the store a manifest with the endpoint's address. The endpoint is up to date while its `/health` names this
release.
"""

from workflows.cluster.errors import StageCrashed, describe_error, mistake_in
from workflows.endpoint.application import application, chosen_engine, key_reader, model_name, with_winner
from workflows.endpoint.status import check_certificate, url_of
from workflows.figures import DeployFigures, OptimizeFigures
from workflows.spec import ServeSpec
from workflows.stage import Context, StageFailed


def run(context: Context) -> DeployFigures:
    """Start or update the endpoint on the connected cluster, and wait until it answers."""
    import ray

    from serve.deployment.front_actor import FrontSettings, run_endpoint
    from serve.front.server import Endpoint
    from workflows.cluster.workers import check_fits

    store, release = context.store, context.inputs["optimize"]
    spec = with_winner(context.spec, context.inputs.get("tune"))
    serve = spec.serve
    check_certificate(serve)
    check_fits(spec, ["deploy"], context.progress)
    engine, reason = chosen_engine(serve, OptimizeFigures.from_json(release.figures).openvino)
    app = application(spec, store, release, engine, surge=_can_start_one_more(serve))
    endpoint = Endpoint(model_name(spec), release.key)
    shown = FrontSettings(
        origins=tuple(serve.cors_origins),
        tls=(serve.tls.certificate, serve.tls.key) if serve.tls else None,
        read_keys=key_reader(spec, store),
    )
    try:
        run_endpoint(app, spec.name, serve.host, serve.port, serve.max_reply_seconds, endpoint, shown)
    except (RuntimeError, ray.exceptions.RayError) as error:
        raise _not_started(spec.name, error) from error
    except OSError as error:
        raise StageFailed(
            f"serve.port: cannot listen on {serve.host}:{serve.port}: {error}; "
            f"free it or take another, as in --set serve.port={min(serve.port + 1, 65535)}"
        ) from None
    return DeployFigures(url=url_of(serve), model=model_name(spec), engine=engine, engine_because=reason)


def _not_started(name: str, error: Exception) -> Exception:
    """The error to raise. For a replica that failed to start, Ray Serve keeps only the traceback's text."""
    from serve.deployment.front_actor import startup_failures

    known = startup_failures(name)
    if (mistake := mistake_in(known)) is not None:
        return StageFailed(str(mistake))
    crash = StageCrashed(f"deploy: Ray Serve could not start the endpoint: {describe_error(error)}")
    crash.add_note(known)
    return crash


def _can_start_one_more(serve: ServeSpec) -> bool:
    """Whether the cluster has capacity to start a new replica before the old ones stop."""
    import ray

    free = ray.available_resources()
    return bool(free.get("CPU", 0) >= serve.cpus_per_replica and free.get("GPU", 0) >= serve.gpus_per_replica)
