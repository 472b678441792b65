"""The forms of a release as rows of a table, for the terminal and for the run's page."""

from typing import Any

_NAMES = {
    "model": "Hugging Face folder",
    "openvino": "OpenVINO",
    "openvino bf16": "OpenVINO, not kept",
    "vllm": "compressed tensors (vLLM)",
    "gguf": "GGUF (llama.cpp)",
}
HEADINGS = ("form", "weights", "MB", "perplexity", "change", "same token", "load s", "tokens/s")


def forms_table(figures: dict[str, Any]) -> list[tuple[str, ...]]:
    """A row of words under `HEADINGS` for the checkpoint, and for each form in the figures of optimize."""
    checkpoint = ("checkpoint", "fp32", "", f"{figures['checkpoint_perplexity']:.4f}", "", "", "", "")
    return [checkpoint, *(_row(form) for form in figures["forms"])]


def _row(form: dict[str, Any]) -> tuple[str, ...]:
    return (
        _NAMES[form["form"]],
        form["weights"],
        f"{form['size_mb']:,.1f}",
        f"{form['perplexity']:.4f}",
        f"{form['perplexity_increase']:+.2%}",
        f"{form['greedy_agreement']:.1%}",
        f"{form['load_s']:.1f}",
        f"{form['tokens_per_second']:.1f}" if "tokens_per_second" in form else "",
    )


def forms_text(figures: dict[str, Any]) -> str:
    """The table as a terminal shows it."""
    rows = [HEADINGS, *forms_table(figures)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(HEADINGS))]
    return "\n".join(
        "  "
        + "  ".join(
            word.ljust(w) if n < 2 else word.rjust(w) for n, (word, w) in enumerate(zip(row, widths, strict=True))
        )
        for row in rows
    )
