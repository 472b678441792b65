"""What the pages are made of: templates, and data that is packed into the page.

plots = Plots()
page = render("run.html.j2", plot=plots.add(figure), plots=plots, ...)
"""

import base64
import gzip
import json
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from markupsafe import Markup

COLOURS = (
    "#3b73c4", "#c8553d", "#2e8b6f", "#8e5bc0", "#b07c1e", "#1f93b0", "#c24f86", "#6d8f2a", "#8a6d55", "#5a6f8a",
)  # fmt: skip
"""of middle lightness: they stand out on a light page, and on a dark one, where page.css inverts plots"""

# The page's own background shows.
_NONE = "rgba(0,0,0,0)"
_LAYOUT = {
    "paper_bgcolor": _NONE, "plot_bgcolor": _NONE, "modebar": {"bgcolor": _NONE, "color": "#9aa3ae"},
    "font": {"color": "#1c2128", "family": "system-ui, sans-serif"},
    "colorway": COLOURS,
}  # fmt: skip
_GRID = "#d3d8df"


def render(template: str, **content: Any) -> str:
    """A page from a template of this folder."""
    text: str = _environment().get_template(template).render(content)
    return text


@cache
def _environment() -> Any:
    import jinja2

    return jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent), autoescape=True, undefined=jinja2.StrictUndefined,
        trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip


def styled(figure: Any) -> Any:
    """A plotly figure in the pages' colors."""
    figure.update_layout(**_LAYOUT)
    figure.update_xaxes(gridcolor=_GRID, zerolinecolor=_GRID, automargin=True)
    figure.update_yaxes(gridcolor=_GRID, zerolinecolor=_GRID, automargin=True)
    return figure


def packed(text: str) -> str:
    """Compressed text that page.js unpacks: base64 of gzip, about a quarter of the text."""
    return base64.b64encode(gzip.compress(text.encode(), 9, mtime=0)).decode()


class Plots:
    """The plotly figures of a page, drawn when a reader comes to them."""

    def __init__(self) -> None:
        self._figures: list[str] = []

    def add(self, figure: Any) -> "Markup":
        """The place of a figure on the page."""
        from markupsafe import Markup

        self._figures.append(styled(figure).to_json())
        return Markup(
            '<div class="plot" role="img" data-plot="{}" style="height:{}px" aria-label="{}"></div>'
        ).format(len(self._figures) - 1, int(figure.layout.height or 440), figure.layout.title.text or "plot")

    @property
    def packed(self) -> str:
        """All figures; empty if there are none."""
        return packed(f"[{','.join(self._figures)}]") if self._figures else ""

    @property
    def library(self) -> str:
        """plotly.js, so that the page needs no network; empty if there are no figures."""
        return _library() if self._figures else ""


@cache
def _library() -> str:
    from plotly.offline import get_plotlyjs

    return packed(get_plotlyjs())


def packed_json(content: Any) -> str:
    """JSON, packed."""
    return packed(json.dumps(content, ensure_ascii=False, separators=(",", ":")))
