"""Write the report of a run, or of several runs side by side: one HTML page.

rayconteur report PIPELINE
rayconteur report PIPELINE --compare RUN
"""

from collections.abc import Sequence
from pathlib import Path

from models.errors import RayconteurError
from workflows.runs.page.comparison_page import comparison_page
from workflows.runs.page.run_page import run_page
from workflows.runs.records import find_run
from workflows.store import RunRecord, Store


def write_report(store: Store, pipeline: str, run: str | None, output: str | None) -> tuple[Path, RunRecord]:
    """Write the page of a run, the pipeline's last one if `run` is None; returns its file and the run's record.

    Raises RayconteurError if there is no such run.
    """
    record = find_run("report", store, pipeline, run)
    return _written(output or f"{record.run}.html", run_page(store, record)), record


def write_comparison(
    store: Store, pipeline: str, others: Sequence[str], run: str | None, output: str | None
) -> tuple[Path, list[RunRecord]]:
    """Write the page that compares a run with others of its pipeline; returns its file and the runs, `run` last.

    Raises RayconteurError if there is no such run, or if a run is named twice.
    """
    records = [find_run("report", store, pipeline, name) for name in (*others, run)]
    names = [record.run for record in records]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice:
        raise RayconteurError(
            f"report: run {twice} is compared with itself; --compare names other runs than --run, each once "
            "(without --run, the last run is compared)"
        )
    return _written(output or f"{names[-1]}-compared.html", comparison_page(store, records)), records


def _written(output: str, page: str) -> Path:
    file = Path(output).resolve()
    file.write_text(page, encoding="utf-8")
    return file
