"""Plot an adversarial pair's replies: quality against diversity, with a line over the temperatures for each model."""

from collections.abc import Sequence

from workflows.scorecard.records import Controls, Diversity, RepliesFigures

_PANELS = (
    ("distinct_2", "distinct-2 (more diverse to the right)", "success", "fresh discriminator deceived"),
    ("self_bleu", "self-BLEU (more diverse to the left)", "frechet_distance", "Fréchet distance to real replies"),
)
_COLOURS = ["#2b7bba", "#e0a100", "#7a828e", "#b03a6a", "#5b8c3a"]


def pair_page(name: str, replies: Sequence[RepliesFigures], real: Diversity, controls: Controls) -> str:
    """An HTML page, which needs no network, of these parts of an adversarial scorecard."""
    import plotly.graph_objects
    from plotly.subplots import make_subplots

    figure = make_subplots(rows=1, cols=len(_PANELS), horizontal_spacing=0.1)
    models = list(dict.fromkeys(row.model for row in replies))
    for column, (across, across_title, up, up_title) in enumerate(_PANELS, start=1):
        place = {"row": 1, "col": column}
        for model, colour in zip(models, _COLOURS, strict=False):
            rows = sorted((row for row in replies if row.model == model), key=lambda row: row.temperature)
            figure.add_trace(
                plotly.graph_objects.Scatter(
                    x=[_figure(row, across) for row in rows],
                    y=[_figure(row, up) for row in rows],
                    text=[f"{row.temperature:g}" for row in rows],
                    mode="lines+markers+text",
                    textposition="top center",
                    name=model,
                    legendgroup=model,
                    showlegend=column == 1,
                    line={"color": colour},
                ),
                **place,
            )
        figure.add_vline(
            getattr(real, across), line={"color": "#2e7d32", "dash": "dot"}, annotation_text="real replies", **place
        )
        figure.update_xaxes(title=across_title, **place)
        figure.update_yaxes(title=up_title, rangemode="tozero", **place)
    figure.add_hline(
        1 - controls.real_against_real, line={"color": "#2e7d32", "dash": "dot"}, row=1, col=1
    )  # fmt: skip
    figure.update_layout(
        title=f"Replies of {name}, each point a temperature", height=480, template="plotly_white",
        legend={"orientation": "h", "y": -0.2},
    )  # fmt: skip
    page: str = figure.to_html(include_plotlyjs=True)
    return page


def _figure(row: RepliesFigures, name: str) -> float:
    value: float = 1 - row.fresh_accuracy if name == "success" else getattr(row, name)
    return value
