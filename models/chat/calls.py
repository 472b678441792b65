"""Tool calls and tools in other forms, converted to OpenAI's, with arguments as objects."""

from typing import Any

from models.chat.form import Fault, MessageError, check_text, is_blank, kind_of, read_json, write_json

_CALL_KEYS = {"id", "type", "function"}
_ARGUMENTS = ("arguments", "parameters", "args", "input")
# LangChain writes `tool_call`.
_KINDS = (None, "function", "tool_call")


def normal_calls(value: Any, field: str) -> list[dict[str, Any]]:
    """The calls in `value`, the same objects if nothing changes; raises Fault.

    `value` is a list of calls or one call, also as JSON text. A call is in OpenAI's form, or an object with only
    `name` and `arguments`.
    """
    if isinstance(value, str):
        value = _read(value, field, "calls")
    if isinstance(value, dict):
        value = [value]
    if not isinstance(value, list):
        raise Fault(field, f"has `{field}` that is {kind_of(value)}; it must be a list of calls")
    calls = [_normal_call(call, field) for call in value]
    numbers = [call["id"] for call in calls if "id" in call]
    if len(set(numbers)) < len(numbers):
        raise Fault(field, f"has several calls with the same id in `{field}`: {', '.join(numbers)}")
    return calls


def normal_tools(tools: Any) -> list[dict[str, Any]] | None:
    """The tools in OpenAI's form, the same objects if nothing changes; None for none; raises MessageError.

    `tools` is a list of functions or one function, also as JSON text. A function is in OpenAI's form (`type`,
    `function`), or an object with only `name`, `description` and `parameters` (`input_schema`).
    """
    if isinstance(tools, str) and is_blank(tools):
        return None
    try:
        if isinstance(tools, str):
            tools = read_json(tools)
    except ValueError as error:
        raise MessageError(None, "tools", f"`tools` is a text that is {error}") from None
    if isinstance(tools, dict) and tools:
        tools = [tools]
    if not tools and not isinstance(tools, bool | int | float):
        return None
    if not isinstance(tools, list):
        raise MessageError(None, "tools", f"`tools` is {kind_of(tools)}; it must be a list of functions")
    made = []
    for place, tool in enumerate(tools):
        try:
            made.append(_normal_tool(read_json(tool) if isinstance(tool, str) else tool))
        except ValueError as error:
            raise MessageError(None, f"tools[{place}]", f"`tools[{place}]` is {error}") from None
    return made


def _read(text: str, field: str, what: str) -> Any:
    try:
        return read_json(text)
    except ValueError as error:
        raise Fault(field, f"has `{field}` whose {what} are a text that is {error}") from None


def _normal_call(call: Any, field: str) -> dict[str, Any]:
    if isinstance(call, str):
        call = _read(call, field, "calls")
    if not isinstance(call, dict):
        raise Fault(field, f"has a call in `{field}` that is {kind_of(call)}, not an object")
    kind = call.get("type")
    if kind not in _KINDS:
        raise Fault(field, f"has a call in `{field}` of type {kind!r}; only functions can be called")
    function = call.get("function")
    if function is None:
        function = call
    name = function.get("name") if isinstance(function, dict) else None
    if not isinstance(name, str) or not name:
        raise Fault(field, f"has a call in `{field}` without the name of a function")
    check_text(name, field)
    arguments = _arguments(function, name, field)
    number = call.get("id")
    if number is not None and not isinstance(number, str | int):
        raise Fault(field, f"has a call of {name!r} in `{field}` whose id is {kind_of(number)}, not text")
    is_normal = (
        kind == "function"
        and call.keys() <= _CALL_KEYS
        and function is not call
        and len(function) == 2
        and function.get("arguments") is arguments
        and ("id" not in call or (isinstance(number, str) and number != ""))
    )
    if is_normal:
        return call
    named = {} if number is None or number == "" else {"id": str(number)}
    return {**named, "type": "function", "function": {"name": name, "arguments": arguments}}


def _arguments(function: dict[str, Any], name: str, field: str) -> dict[str, Any]:
    given = [function[key] for key in _ARGUMENTS if function.get(key) is not None]
    if len(given) > 1:
        raise Fault(field, f"has a call of {name!r} in `{field}` with arguments under several keys")
    arguments = given[0] if given else {}
    if isinstance(arguments, str):
        # What OpenAI's models write for a function without parameters.
        arguments = {} if is_blank(arguments) else _read(arguments, field, f"arguments of {name!r}")
    if not isinstance(arguments, dict):
        raise Fault(
            field, f"has a call of {name!r} in `{field}` whose arguments are {kind_of(arguments)}, not an object"
        )
    try:
        written = write_json(arguments)
    except ValueError as error:
        raise Fault(field, f"has a call of {name!r} in `{field}` whose arguments are {error}") from None
    check_text(written, field)
    return arguments


def _normal_tool(tool: Any) -> dict[str, Any]:
    if not isinstance(tool, dict):
        raise ValueError(f"{kind_of(tool)}, not an object")
    kind, function = tool.get("type", "function"), tool.get("function")
    if kind not in ("function", None):
        raise ValueError(f"of type {kind!r}; only functions can be called")
    if function is None:
        function = {key: value for key, value in tool.items() if key != "type"}
    if not isinstance(function, dict) or not isinstance(function.get("name"), str) or not function["name"]:
        raise ValueError("without the name of a function")
    normal = _normal_function(function)
    if "function" in tool and normal is function and tool.get("type") == "function":
        return tool
    # Other keys beside `function` stay, since templates write a tool unchanged.
    around = {key: value for key, value in tool.items() if key not in ("type", "function")}
    return {"type": "function", **(around if tool.get("function") is not None else {}), "function": normal}


def _normal_function(function: dict[str, Any]) -> dict[str, Any]:
    made = {key: value for key, value in function.items() if value is not None}
    if "input_schema" in made and "parameters" not in made:
        made["parameters"] = made.pop("input_schema")
    parameters = made.get("parameters")
    if isinstance(parameters, str):
        parameters = made["parameters"] = read_json(parameters)
    if parameters is not None and not isinstance(parameters, dict):
        raise ValueError(f"{made['name']!r} with parameters that are {kind_of(parameters)}, not an object")
    if not isinstance(made.get("description", ""), str):
        raise ValueError(f"{made['name']!r} with a description that is {kind_of(made['description'])}, not text")
    try:
        check_text(write_json(made), "tools")
    except Fault as fault:
        raise ValueError(f"{made['name']!r}, which {fault.words}") from None
    is_same = made.keys() == function.keys() and all(function[key] is value for key, value in made.items())
    return function if is_same else made
