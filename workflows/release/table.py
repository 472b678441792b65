"""The forms of a release as rows of a table, for the terminal and for the run's page."""

from workflows.figures import Form, FormFigures, OptimizeFigures
from workflows.progress import table_text

_NAMES = {
    Form.MODEL: "Hugging Face folder",
    Form.OPENVINO: "OpenVINO",
    Form.OPENVINO_BF16: "OpenVINO, not kept",
    Form.VLLM: "compressed tensors (vLLM)",
    Form.GGUF: "GGUF (llama.cpp)",
}
HEADINGS = ("form", "weights", "MB", "perplexity", "change", "same token", "load s", "tokens/s")
_NUM_WORDS = 2
"""of the columns, those before the numbers"""


def forms_table(figures: OptimizeFigures) -> list[tuple[str, ...]]:
    """A row of words under `HEADINGS` for the checkpoint, and for each form."""
    checkpoint = ("checkpoint", "fp32", "", f"{figures.checkpoint_perplexity:.4f}", "", "", "", "")
    return [checkpoint, *(_row(form) for form in figures.forms)]


def _row(form: FormFigures) -> tuple[str, ...]:
    return (
        _NAMES[form.form],
        form.weights,
        f"{form.size_mb:,.1f}",
        f"{form.perplexity:.4f}",
        f"{form.perplexity_increase:+.2%}",
        f"{form.greedy_agreement:.1%}",
        f"{form.load_s:.1f}",
        "" if form.tokens_per_second is None else f"{form.tokens_per_second:.1f}",
    )


def forms_text(figures: OptimizeFigures) -> str:
    """The table as a terminal shows it."""
    rights = range(_NUM_WORDS, len(HEADINGS))
    return table_text(HEADINGS, forms_table(figures), right=rights, indent=2)
