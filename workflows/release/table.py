"""The table of a release's formats, for the terminal and the run's page."""

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
"""number of columns before those with numbers"""


def forms_table(figures: OptimizeFigures) -> list[tuple[str, ...]]:
    """The rows under `HEADINGS`: the checkpoint, and each format."""
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
    """The table as text."""
    rights = range(_NUM_WORDS, len(HEADINGS))
    return table_text(HEADINGS, forms_table(figures), right=rights, indent=2)
