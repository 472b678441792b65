"""`rayconteur keys`: the API keys of a pipeline's endpoint.

rayconteur keys create shop.yaml alice --requests-per-minute 60     # prints the key, once
rayconteur keys list shop.yaml
rayconteur keys revoke shop.yaml alice
"""

import json
from typing import TYPE_CHECKING

import click

from workflows.cli.options import open_pipeline, options

if TYPE_CHECKING:
    from workflows.endpoint.api_keys import KeyFile
    from workflows.spec import PipelineSpec


@click.group()
def keys() -> None:
    """Create, list and revoke API keys for PIPELINE's endpoint.

    The store keeps hashes of the keys. A running endpoint picks up changes within seconds.
    """


@keys.command()
@options("set", "json")
@click.argument("name")
@click.option("--requests-per-minute", type=click.IntRange(1, 1_000_000_000), help="Default: no limit.")
@click.option(
    "--tokens-per-minute", type=click.IntRange(1, 1_000_000_000),
    help="Tokens of prompts and replies together. Default: no limit.",
)  # fmt: skip
def create(
    pipeline: str,
    name: str,
    overrides: tuple[str, ...],
    json_lines: bool,
    requests_per_minute: int | None,
    tokens_per_minute: int | None,
) -> None:
    """Create a key for NAME and print it once."""
    spec, file = _open(pipeline, overrides)
    secret, key = file.add(name, requests_per_minute, tokens_per_minute)
    if json_lines:
        click.echo(json.dumps({"event": "key", "key": secret, **key.model_dump(exclude={"sha256"})}))
        return
    # Standard output gets only the key: KEY=$(rayconteur keys create ...).
    click.echo(f"the API key of {name}, shown only once:", err=True)
    click.echo(secret)
    if spec.serve.keys == "none":
        click.echo("this pipeline's endpoint does not require keys yet; set serve.keys: required", err=True)


@keys.command("list")
@options("set", "json")
def list_keys(pipeline: str, overrides: tuple[str, ...], json_lines: bool) -> None:
    """List the valid keys, without their secrets."""
    from workflows.endpoint.api_keys import keys_text

    _, file = _open(pipeline, overrides)
    found = file.read() or []
    if not json_lines:
        click.echo(keys_text(found))
        return
    for key in found:
        click.echo(json.dumps(key.model_dump(exclude={"sha256"})))


@keys.command()
@options("set", "json")
@click.argument("name")
def revoke(pipeline: str, name: str, overrides: tuple[str, ...], json_lines: bool) -> None:
    """Revoke NAME's key; replies in progress finish."""
    _open(pipeline, overrides)[1].revoke(name)
    text = f"the key of {name} is revoked; running endpoints apply this within seconds"
    click.echo(json.dumps({"event": "revoked", "name": name}) if json_lines else text)


def _open(pipeline: str, overrides: tuple[str, ...]) -> "tuple[PipelineSpec, KeyFile]":
    spec, store = open_pipeline(pipeline, overrides)
    from workflows.endpoint.api_keys import KeyFile

    return spec, KeyFile(store, on_wait=lambda text: click.echo(text, err=True))
