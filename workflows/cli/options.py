"""What the commands share: the argument PIPELINE, options, and errors as one sentence and an exit code."""

import functools
import json
import os
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import click

from models.errors import RayconteurError
from workflows.cluster.errors import StageCrashed, describe_error, full_traceback, write_traceback
from workflows.spec.errors import SpecError
from workflows.spec.read import read_spec
from workflows.stage import STAGE_NAMES

if TYPE_CHECKING:
    from workflows.spec import PipelineSpec
    from workflows.store import Store

json_option = click.option("--json", "json_lines", is_flag=True, help="Print JSON lines.")


def options(*names: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """The argument PIPELINE, and these shared options."""
    shared = {
        "set": click.option(
            "--set", "overrides", multiple=True, metavar="FIELD=VALUE",
            help="Override a field by its dotted path, as in train.learning_rate=2e-4. Repeatable.",
        ),
        "to": click.option(
            "--to", "last", type=click.Choice(STAGE_NAMES), default="deploy", help="Stop after this stage."
        ),
        "json": json_option,
        "insecure": click.option(
            "--insecure", is_flag=True, help="Allow an endpoint without API keys that other machines can reach."
        ),
        "force": click.option("--force", is_flag=True, help="Deploy even if the scorecard does not pass."),
    }  # fmt: skip

    def decorate(function: Callable[..., Any]) -> Callable[..., Any]:
        for name in reversed(names):
            function = shared[name](function)
        return click.argument("pipeline", type=click.Path(dir_okay=False))(answering_errors(function))

    return decorate


def answering_errors(function: Callable[..., Any]) -> Callable[..., Any]:
    """Print the user's errors as sentences on stderr and set the exit code; never show a traceback."""

    @functools.wraps(function)
    def answer(*args: Any, **options: Any) -> None:
        json_lines = bool(options.get("json_lines"))
        try:
            function(*args, **options)
        except SpecError as error:
            for problem in error.problems:
                _complain(str(problem), json_lines)
            sys.exit(2)
        except KeyboardInterrupt:
            _complain("stopped; run the same command to resume", json_lines)
            sys.exit(130)
        except BrokenPipeError:  # `| head` has seen enough
            sys.stdout = open(os.devnull, "w")  # noqa: SIM115 (for what Python flushes at its end)
            sys.exit(0)
        except Exception as error:
            _complain_of(error, json_lines)
            sys.exit(1)

    return answer


def _complain_of(error: Exception, json_lines: bool) -> None:
    """Print a sentence for a user's mistake; for anything else, a line and the path of a traceback file."""
    came_through_ray = getattr(error, "cause", None) is not None
    if isinstance(error, RayconteurError):
        _complain(describe_error(error), json_lines)
    elif isinstance(error, OSError) and not came_through_ray:
        _complain(f"{error}; check the path, permissions and free space, then run it again", json_lines)
    else:
        text = describe_error(error) if came_through_ray else f"{type(error).__name__}: {error}"
        text = str(error) if isinstance(error, StageCrashed) else f"unexpected {text}"
        file = write_traceback(full_traceback(error))
        _complain(f"{text} (details in {file})", json_lines, traceback=file)


def _complain(text: str, json_lines: bool, **more: str) -> None:
    event = {"event": "error", "text": text, **more}
    click.echo(json.dumps(event) if json_lines else f"error: {text}", err=not json_lines)


def open_pipeline(
    pipeline: str, overrides: tuple[str, ...], may_be_open: bool = True
) -> "tuple[PipelineSpec, Store]":
    """Read a pipeline file and open its store; see `read_spec` for `may_be_open`."""
    spec = read_spec(pipeline, list(overrides), may_be_open)
    from workflows.store import Store

    return spec, Store(spec.store, patient=False)
