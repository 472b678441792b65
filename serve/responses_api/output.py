"""The items of a Responses API answer while the reply is generated, and their events."""

from collections.abc import Iterator
from uuid import uuid4

from serve.protocol.responses import TokenLogprob
from serve.replies.generation import CallDelta, Piece, ToolCall
from serve.responses_api.answer import (
    ItemStatus,
    OutputCall,
    OutputItem,
    OutputMessage,
    OutputReasoning,
    OutputText,
    ReasoningText,
)
from serve.responses_api.events import (
    ArgumentsDelta,
    ArgumentsDone,
    Event,
    ItemEvent,
    PartEvent,
    ReasoningDelta,
    ReasoningDone,
    TextDelta,
    TextDone,
)


class Output:
    """The items of one answer; an item is open until an item of another kind follows.

    Events share these items: serialize each event before requesting the next one.
    """

    def __init__(self) -> None:
        self.items: list[OutputItem] = []
        """the complete items, and the open one"""
        self._calls: list[int] = []  # the indices of the calls among them
        self._is_open = False

    def fail(self) -> None:
        """End the output after an error."""
        if self._is_open:
            self.items[-1].status = "incomplete"

    def take(self, piece: Piece) -> Iterator[Event]:
        """Add a piece of the reply."""
        if piece.thought:
            yield from self._think(piece.thought)
        if piece.text or piece.tokens:
            yield from self._say(piece.text, [token.logprob for token in piece.tokens])
        for delta in piece.calls:
            yield from self._go_on_calling(delta)

    def end(self, calls: list[ToolCall], is_cut: bool) -> Iterator[Event]:
        """End the output of a complete reply with these calls."""
        for place, call in enumerate(calls):
            if place == len(self._calls):
                yield from self._go_on_calling(CallDelta(place, call.arguments, call.id, call.name))
            elif rest := call.arguments[len(self._call(place).arguments) :]:
                yield from self._go_on_calling(CallDelta(place, rest))
        if not self.items:
            yield from self._say("", [])
        yield from self._close("incomplete" if is_cut else "completed")

    def _think(self, thought: str) -> Iterator[Event]:
        item = self.items[-1] if self._is_open else None
        if not isinstance(item, OutputReasoning):
            yield from self._close("completed")
            item = OutputReasoning(id=f"rs_{uuid4().hex}", status="in_progress", content=[])
            yield from self._open(item)
            item.content.append(ReasoningText())
            yield self._part("added", item)
        item.content[0].text += thought
        yield ReasoningDelta(item_id=item.id, output_index=self._place, content_index=0, delta=thought)

    def _say(self, text: str, logprobs: list[TokenLogprob]) -> Iterator[Event]:
        item = self.items[-1] if self._is_open else None
        if not isinstance(item, OutputMessage):
            yield from self._close("completed")
            item = OutputMessage(id=f"msg_{uuid4().hex}", status="in_progress", content=[])
            yield from self._open(item)
            item.content.append(OutputText())
            yield self._part("added", item)
        item.content[0].text += text
        item.content[0].logprobs += logprobs
        if text or logprobs:
            yield TextDelta(
                item_id=item.id, output_index=self._place, content_index=0,
                delta=text, logprobs=logprobs,
            )  # fmt: skip

    def _go_on_calling(self, delta: CallDelta) -> Iterator[Event]:
        if delta.id is not None:
            yield from self._close("completed")
            self._calls.append(len(self.items))
            name = delta.name or ""
            yield from self._open(
                OutputCall(id=f"fc_{uuid4().hex}", call_id=delta.id, name=name, arguments="", status="in_progress")
            )
        item = self._call(delta.index)
        item.arguments += delta.arguments
        if delta.arguments:
            yield ArgumentsDelta(item_id=item.id, output_index=self._calls[delta.index], delta=delta.arguments)

    def _call(self, number: int) -> OutputCall:
        item = self.items[self._calls[number]]
        assert isinstance(item, OutputCall)
        return item

    @property
    def _place(self) -> int:
        return len(self.items) - 1

    def _open(self, item: OutputItem) -> Iterator[Event]:
        self.items.append(item)
        self._is_open = True
        yield ItemEvent(type="response.output_item.added", output_index=self._place, item=item)

    def _close(self, status: ItemStatus) -> Iterator[Event]:
        if not self._is_open:
            return
        self._is_open = False
        item = self.items[-1]
        item.status = status
        if isinstance(item, OutputCall):
            yield ArgumentsDone(
                item_id=item.id, output_index=self._place, name=item.name,
                arguments=item.arguments,
            )  # fmt: skip
        else:
            yield self._text_done(item)
            yield self._part("done", item)
        yield ItemEvent(type="response.output_item.done", output_index=self._place, item=item)

    def _text_done(self, item: OutputMessage | OutputReasoning) -> Event:
        if isinstance(item, OutputReasoning):
            return ReasoningDone(
                item_id=item.id, output_index=self._place, content_index=0,
                text=item.content[0].text,
            )  # fmt: skip
        return TextDone(
            item_id=item.id, output_index=self._place, content_index=0,
            text=item.content[0].text, logprobs=item.content[0].logprobs,
        )  # fmt: skip

    def _part(self, what: str, item: OutputMessage | OutputReasoning) -> Event:
        return PartEvent(
            type="response.content_part.added" if what == "added" else "response.content_part.done",
            item_id=item.id, output_index=self._place, content_index=0,
            part=item.content[0],
        )  # fmt: skip
