"""An adversarial pair's replies as a page: quality against diversity, each model a line over its temperatures."""

from typing import Any

_PANELS = (
    ("distinct_2", "distinct-2 (more diverse to the right)", "success", "fresh discriminator deceived"),
    ("self_bleu", "self-BLEU (more diverse to the left)", "frechet_distance", "Fréchet distance to real replies"),
)
_COLOURS = ["#2b7bba", "#e0a100", "#7a828e", "#b03a6a", "#5b8c3a"]


def pair_page(name: str, pair: dict[str, Any]) -> str:
    """An HTML page, readable without a network, of the scorecard's part `pair`."""
    import plotly.graph_objects
    from plotly.subplots import make_subplots

    figure = make_subplots(rows=1, cols=len(_PANELS), horizontal_spacing=0.1)
    models = list(dict.fromkeys(row["model"] for row in pair["replies"]))
    for column, (across, across_title, up, up_title) in enumerate(_PANELS, start=1):
        place: dict[str, Any] = {"row": 1, "col": column}
        for model, colour in zip(models, _COLOURS, strict=False):
            rows = sorted(
                ({**row, "success": 1 - row["fresh_accuracy"]} for row in pair["replies"] if row["model"] == model),
                key=lambda row: row["temperature"],
            )
            figure.add_trace(
                plotly.graph_objects.Scatter(
                    x=[row[across] for row in rows],
                    y=[row[up] for row in rows],
                    text=[f"{row['temperature']:g}" for row in rows],
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
            pair["real"][across], line={"color": "#2e7d32", "dash": "dot"}, annotation_text="real replies", **place
        )
        figure.update_xaxes(title=across_title, **place)
        figure.update_yaxes(title=up_title, rangemode="tozero", **place)
    figure.add_hline(
        1 - pair["controls"]["real_against_real"], line={"color": "#2e7d32", "dash": "dot"}, row=1, col=1
    )  # fmt: skip
    figure.update_layout(
        title=f"Replies of {name}, each point a temperature", height=480, template="plotly_white",
        legend={"orientation": "h", "y": -0.2},
    )  # fmt: skip
    page: str = figure.to_html(include_plotlyjs=True)
    return page
