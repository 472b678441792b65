"""Plot an inspection with plotly, for a run's page.

length_bars(inspection).show()
"""

from typing import Any

from workflows.corpus.inspection.tally import Inspection

_MAX_LANGUAGES = 12
_OTHERS = "others"
_BAR_PIXELS = 34


def length_bars(inspection: Inspection) -> Any:
    """The share of each source's conversations by their length in tokens."""
    import plotly.graph_objects

    known = sorted({int(length) for source in inspection.sources for length in source.token_lengths})
    labels = [f"to {length:,}" for length in known]
    bars = [
        plotly.graph_objects.Bar(
            name=source.name,
            x=labels,
            y=[source.token_lengths.get(str(length), 0) / max(1, source.conversations) for length in known],
        )
        for source in inspection.sources
    ]
    figure = plotly.graph_objects.Figure(bars)
    figure.update_layout(
        title="share of conversations by length in tokens", barmode="group", height=340,
        margin={"l": 60, "r": 20, "t": 50, "b": 50},
        yaxis={"tickformat": ".0%"}, legend={"orientation": "h"},
        xaxis={"type": "category"},
    )  # fmt: skip
    return figure


def language_bars(inspection: Inspection) -> Any | None:
    """The share of each language in each source; None if all conversations have one language."""
    import plotly.graph_objects

    languages = list(inspection.total.languages)
    if len(languages) < 2:
        return None
    shown, others = languages[:_MAX_LANGUAGES], languages[_MAX_LANGUAGES:]
    counts = {language: [source.languages.get(language, 0) for source in inspection.sources] for language in shown}
    if others:
        counts[_OTHERS] = [sum(source.languages.get(each, 0) for each in others) for source in inspection.sources]
    names = [source.name for source in inspection.sources]
    wholes = [max(1, source.conversations) for source in inspection.sources]
    bars = [
        plotly.graph_objects.Bar(
            name=language, y=names, x=[count / whole for count, whole in zip(found, wholes, strict=True)],
            orientation="h",
        )
        for language, found in counts.items()
    ]  # fmt: skip
    figure = plotly.graph_objects.Figure(bars)
    figure.update_layout(
        title="languages (und: too short to say, or code)", barmode="stack", height=150 + _BAR_PIXELS * len(names),
        margin={"l": 120, "r": 20, "t": 50, "b": 40}, xaxis={"tickformat": ".0%", "range": [0, 1]},
        yaxis={"type": "category", "autorange": "reversed"}, legend={"traceorder": "normal"},
    )  # fmt: skip
    return figure
