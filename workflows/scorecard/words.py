"""Comparisons in words, for the verdict, the terminal and the page."""

from workflows.scorecard.records import Compared

MODEL_NAMES = {"base": "the base model", "service": "the release in service", "tuned": "the checkpoint"}

_SCALES = {"share": 100.0, "nats": 1.0, "number": 1.0}
_DECIMALS = {"share": 1, "nats": 4, "number": 3}


def describe(compared: Compared) -> str:
    """Both values, the difference, its interval, and the number of items."""
    unit = compared.unit
    of_difference = {"share": " points", "nats": " nats a token", "number": ""}[unit]
    return (
        f"{title(compared)}: {value(compared.tuned, unit)} instead of {value(compared.other, unit)} "
        f"({_signed(compared.difference, unit)}{of_difference}, {interval(compared)}; {items_of(compared)})"
    )


def title(compared: Compared) -> str:
    """The measure, and the slice if it is one."""
    return compared.measure if compared.slice is None else f"{compared.measure}, {compared.slice}"


def value(number: float, unit: str) -> str:
    """A score, such as 82.0 % or 1.4341."""
    return f"{number * _SCALES[unit]:.{_DECIMALS[unit]}f}" + (" %" if unit == "share" else "")


def amount(number: float, unit: str) -> str:
    """A difference, such as 2 points or 0.02 nats a token."""
    return f"{number * _SCALES[unit]:.3g}" + {"share": " points", "nats": " nats a token", "number": ""}[unit]


def interval(compared: Compared) -> str:
    """The interval of the difference."""
    if compared.low is None or compared.high is None:
        return "too few groups for an interval"
    ends = f"{_signed(compared.low, compared.unit)} to {_signed(compared.high, compared.unit)}"
    return f"{percent(compared.confidence)} interval {ends}"


def items_of(compared: Compared) -> str:
    """How many items were compared."""
    noun = "conversations" if compared.measure in ("held-out loss", "preference accuracy") else "items"
    groups = "" if compared.clusters == compared.items else f" in {compared.clusters:,} groups"
    return f"{compared.items:,} {noun}{groups}"


def smallest(compared: Compared) -> str:
    """The difference that this many items could show."""
    if compared.smallest is None:
        return "so few items can show no difference"
    return f"this many items show differences of {amount(compared.smallest, compared.unit)} and more"


def percent(share: float) -> str:
    """A share such as 95 %."""
    return f"{share * 100:g} %"


def _signed(number: float, unit: str) -> str:
    return f"{number * _SCALES[unit]:+.{_DECIMALS[unit]}f}"
