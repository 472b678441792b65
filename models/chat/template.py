"""A compiled chat template: messages to text, and where each message starts in that text.

template = ChatTemplate(source, {"eos_token": "</s>"})
text = template.text(messages, tools, generates=True)
text, begins = template.marked_text(messages, tools)
"""

import functools
import re
from collections.abc import Mapping, Sequence
from typing import Any

import jinja2
import jinja2.runtime
import jinja2.visitor

from models.errors import RayconteurError

Messages = Sequence[Mapping[str, Any]]
Tools = Sequence[Mapping[str, Any]] | None

GUARD = "\ufdd0"
"""marks the name of a control token inside a message (models/chat/control.py); a noncharacter, which Unicode reserves
for internal use"""
# In ASCII JSON and in Python's repr, in which some templates write lists and objects.
_ESCAPED_GUARD = re.compile(r"\\+ufdd0")

# Other noncharacters.
_BEGIN, _DONE = "\ufdd1", "\ufdd2"
_MARK = re.compile(f"{_BEGIN}(-?\\d+){_DONE}")
_MARKER = "rayconteur_mark"
_OF_LOOPS = frozenset({"first", "last", "index", "index0", "revindex", "revindex0", "length", "previtem", "nextitem"})

RESERVED = frozenset({"messages", "tools", "documents", "add_generation_prompt", _MARKER})
"""variables that the renderer sets itself"""


class ChatTemplateError(RayconteurError):
    """The tokenizer's chat template cannot render these messages for training or inference."""


class ChatTemplate:
    """A chat template, compiled as transformers does it, in its sandbox."""

    def __init__(self, source: str, variables: Mapping[str, Any]) -> None:
        self.source = source
        self._variables = dict(variables)

    def text(self, messages: Messages, tools: Tools = None, generates: bool = False, **variables: Any) -> str:
        """The text of `messages`; with `generates` also the opening of the assistant's next turn.

        Raises ChatTemplateError with the template's own message.
        """
        return self._rendered(_compiled(self.source), messages, tools, generates, variables)

    def marked_text(
        self, messages: Messages, tools: Tools = None, generates: bool = False, **variables: Any
    ) -> tuple[str, list[int]]:
        """The same text, and where each message starts in it: the position of the template's loop over the messages.
        -1 for a message for which the loop writes nothing.
        """
        numbers = {id(message): number for number, message in enumerate(messages)}
        numbers[id(None)] = -1
        marked = self._rendered(_marking(self.source), messages, tools, generates, {**variables, _MARKER: numbers})
        first, *rest = _MARK.split(marked)
        text, length, begins = [first], len(first), [-1] * len(messages)
        for number, piece in zip(rest[::2], rest[1::2], strict=True):
            if piece and int(number) >= 0 and begins[int(number)] < 0:
                begins[int(number)] = length
            text.append(piece)
            length += len(piece)
        return "".join(text), begins

    def _rendered(
        self, compiled: Any, messages: Messages, tools: Tools, generates: bool, variables: Mapping[str, Any]
    ) -> str:
        try:
            text = compiled.render(
                messages=messages,
                tools=tools,
                documents=None,
                add_generation_prompt=generates,
                **{**self._variables, **variables},
            )
        except (jinja2.exceptions.TemplateError, TypeError, ValueError, LookupError, AttributeError) as error:
            raise ChatTemplateError(f"the chat template refuses these messages: {error}") from error
        assert isinstance(text, str)
        return _ESCAPED_GUARD.sub(GUARD, text) if "ufdd0" in text else text

    def literals(self) -> str:
        """The string literals of the template, separated by NUL."""
        return _literals(self.source)


@functools.lru_cache(maxsize=16)
def _compiled(source: str) -> Any:
    from transformers.utils.chat_template_utils import _compile_jinja_template

    try:
        template = _compile_jinja_template(source)
    except jinja2.exceptions.TemplateSyntaxError as error:
        raise ChatTemplateError(f"the chat template is not valid Jinja: line {error.lineno}: {error}") from error
    environment, own = template.environment, template.environment.getattr

    def getattr_(owner: Any, name: str) -> Any:
        """`loop.first` and similar without the sandbox's checks, which cost more than the rest of a turn."""
        if type(owner) is jinja2.runtime.LoopContext and name in _OF_LOOPS:
            return getattr(owner, name)
        return own(owner, name)

    environment.getattr = getattr_
    return template


@functools.lru_cache(maxsize=16)
def _marking(source: str) -> Any:
    """The template with a mark wherever its loops reach another message."""
    environment = _compiled(source).environment
    environment.filters[_MARKER] = _write_mark
    return environment.from_string(_Marking().visit(environment.parse(source)))


@jinja2.pass_context
def _write_mark(context: jinja2.runtime.Context, item: Any) -> str:
    """The mark of a message, the mark of none if `item` is None, and nothing for an item that is not a message."""
    number = context.parent[_MARKER].get(id(item))
    return "" if number is None else f"{_BEGIN}{number}{_DONE}"


class _Marking(jinja2.visitor.NodeTransformer):
    """Adds a mark at the start of every iteration of a loop, and after a loop the mark of the enclosing loop; but not
    in blocks whose text the template may process before it writes it.
    """

    def __init__(self) -> None:
        self._items: list[str] = []

    def _as_it_is(self, node: jinja2.nodes.Node) -> jinja2.nodes.Node:
        return node

    visit_Macro = visit_AssignBlock = visit_FilterBlock = _as_it_is

    def visit_For(self, loop: jinja2.nodes.For) -> Any:
        named = loop.target if isinstance(loop.target, jinja2.nodes.Name) else None
        if named:
            self._items.append(named.name)
        self.generic_visit(loop)
        if not named:
            return loop
        loop.body.insert(0, _mark_of(self._items.pop(), loop.lineno))
        return [loop, _mark_of(self._items[-1] if self._items else "", loop.lineno)]


def _mark_of(item: str, line: int) -> jinja2.nodes.Node:
    found = jinja2.nodes.Name(item, "load") if item else jinja2.nodes.Const(None)
    mark = jinja2.nodes.Filter(found, _MARKER, [], [], None, None)
    return jinja2.nodes.Output([mark]).set_lineno(line)


@functools.lru_cache(maxsize=16)
def _literals(source: str) -> str:
    tree = _compiled(source).environment.parse(source)
    found = {node.data for node in tree.find_all(jinja2.nodes.TemplateData)}
    found |= {node.value for node in tree.find_all(jinja2.nodes.Const) if isinstance(node.value, str)}
    return "\0".join(sorted(found))
