"""`rayconteur trials --csv`, `--optuna` and `--mlflow`: a search for other programs."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from workflows.search.records import Search

_OPTIONS = (
    click.option("--csv", "csv", type=click.Path(dir_okay=False), help="Write the trials to this file, as a table."),
    click.option(
        "--optuna", metavar="STORAGE",
        help="Write the search as an Optuna study to a storage, such as sqlite:///study.db.",
    ),
    click.option("--mlflow", metavar="URI", help="Log the search to MLflow at a tracking URI, such as sqlite:///mlflow.db."),
)  # fmt: skip


def export_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """The options that name where to write a search."""
    for option in reversed(_OPTIONS):
        function = option(function)
    return function


def export(search: "Search", json_lines: bool, csv: str | None, optuna: str | None, mlflow: str | None) -> None:
    """Write a search to each of these places, and print what was written."""
    from workflows.store import without_secrets

    def tell(form: str, place: str, **more: str) -> None:
        place = without_secrets(place)
        parts = [f"{place}: {len(search.trials)} trials", *(f"{name} {each}" for name, each in more.items())]
        event = {"event": "export", "form": form, "place": place, **more}
        click.echo(json.dumps(event) if json_lines else ", ".join(parts))

    if csv is not None:
        from workflows.search.export import csv_text

        Path(csv).write_text(csv_text(search), encoding="utf-8")
        tell("csv", csv)
    if optuna is not None:
        from workflows.search.studies import write_study

        tell("optuna", optuna, study=write_study(search, optuna))
    if mlflow is not None:
        from workflows.search.export import log_search

        tell("mlflow", mlflow, run=log_search(search, mlflow))
