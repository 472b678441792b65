"""The changes that `data` makes to a model's chat template.

They are written into the template itself, so they apply wherever the tokenizer is used: in training, at the endpoint,
in a release on another server.
"""

import json
import re
from collections.abc import Mapping
from datetime import date
from keyword import iskeyword
from typing import Any

from models.chat.control import ALLOWED
from models.chat.template import RESERVED, ChatTemplate, ChatTemplateError

_TODAY = re.compile(r"strftime_now\(\s*(?:format\s*=\s*)?('[^'\\]*'|\"[^\"\\]*\")\s*\)")
# Llama's templates take the date as a variable.
_DATE_VARIABLE, _DATE_FORMAT = "date_string", "%d %b %Y"


def change_template(
    tokenizer: Any,
    template: str | None = None,
    variables: Mapping[str, Any] | None = None,
    day: date | None = None,
    allows_control_tokens: bool = False,
) -> None:
    """Give the tokenizer another chat template, or other values of its variables, or a fixed date.

    Raises ChatTemplateError if the template cannot be compiled, or writes the date in a way that cannot be fixed.
    """
    if template is not None:
        tokenizer.chat_template = template
    known = tokenizer.chat_template
    named = known if isinstance(known, dict) else {"": known}
    changed = {}
    for name, source in named.items():
        try:
            ChatTemplate(source, {}).literals()  # compiles
        except ChatTemplateError as error:
            where = "" if template is None else "data.chat_template: "
            raise ChatTemplateError(f"{where}{error}") from error
        values = dict(variables or {})
        if unfit := [name for name in values if not name.isidentifier() or iskeyword(name)]:
            raise ChatTemplateError(
                f"data.chat_template_kwargs: {unfit[0]!r} is not a valid name of a template variable; remove it"
            )
        if taken := sorted(RESERVED & values.keys()):
            raise ChatTemplateError(f"data.chat_template_kwargs: {taken[0]} is set by Rayconteur itself; remove it")
        if day is not None:
            if _DATE_VARIABLE in source:
                values.setdefault(_DATE_VARIABLE, day.strftime(_DATE_FORMAT))
            source = _TODAY.sub(lambda found: json.dumps(day.strftime(found[1][1:-1])), source)
            if "strftime_now(" in source:
                raise ChatTemplateError(
                    "data.template_date: the chat template formats today's date with a format that is not a string "
                    "literal; write the date into your own template (data.chat_template)"
                )
        defaults = "".join(
            f"{{%- if {name} is not defined %}}{{%- set {name} = {json.dumps(value)} %}}{{%- endif %}}"
            for name, value in values.items()
        )
        changed[name] = defaults + source + (ALLOWED if allows_control_tokens and ALLOWED not in source else "")
    tokenizer.chat_template = changed if isinstance(known, dict) else changed[""]


def writes_today(tokenizer: Any) -> bool:
    """Whether the template writes the current date."""
    return "strftime_now(" in json.dumps(tokenizer.chat_template)
