"""tool_call: whether a reply calls exactly the expected functions, with equal arguments."""

from typing import Any

from models.chat.form import Message, kind_of, read_json
from models.scorers.base import Scorer


class ToolCall(Scorer):
    """Expects a call or a list of calls, {"name", "arguments"}; without `arguments`, any are right. An empty list
    expects no call. The calls of a reply have no order.
    """

    def read(self, value: Any) -> list[dict[str, Any]]:
        calls = [value] if isinstance(value, dict) else value
        if not isinstance(calls, list):
            raise ValueError(f"`tool_calls` is {kind_of(value)}; it must be a list of calls")
        return [_read_call(call) for call in calls]

    def score(self, expected: list[dict[str, Any]], reply: Message) -> float:
        made = [call["function"] for call in reply.get("tool_calls", ())]
        if len(made) != len(expected):
            return 0.0
        # Those with arguments first: a call with any arguments must not take what another one needs.
        for wanted in sorted(expected, key=lambda call: "arguments" not in call):
            found = next((call for call in made if _is_equal(wanted, call)), None)
            if found is None:
                return 0.0
            made = [call for call in made if call is not found]
        return 1.0


def _read_call(call: Any) -> dict[str, Any]:
    function = call.get("function", call) if isinstance(call, dict) else call
    if not isinstance(function, dict) or not isinstance(function.get("name"), str) or not function["name"]:
        raise ValueError('each of `tool_calls` must have a `name`, as in {"name": "price", "arguments": {"id": 7}}')
    if function.get("arguments") is None:
        return {"name": function["name"]}
    arguments = _arguments(function["arguments"])
    if not isinstance(arguments, dict):
        raise ValueError(f"the arguments of {function['name']!r} are {kind_of(arguments)}; they must be an object")
    return {"name": function["name"], "arguments": arguments}


def _is_equal(wanted: dict[str, Any], made: dict[str, Any]) -> bool:
    if wanted["name"] != made["name"]:
        return False
    return "arguments" not in wanted or is_same_json(wanted["arguments"], _arguments(made.get("arguments", {})))


def _arguments(value: Any) -> Any:
    """Arguments as an object, also from JSON text; another text stays what it is."""
    try:
        return read_json(value) if isinstance(value, str) else value
    except ValueError:
        return value


def is_same_json(one: Any, other: Any) -> bool:
    """Whether two JSON values are equal: 1 is 1.0 but not true, and the keys of an object have no order."""
    if isinstance(one, bool) or isinstance(other, bool):
        return one is other
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(is_same_json(one[key], other[key]) for key in one)
    if isinstance(one, list) and isinstance(other, list):
        return len(one) == len(other) and all(map(is_same_json, one, other))
    return bool(one == other)
