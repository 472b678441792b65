"""The answer to a text completion: its choices, or the events of its stream."""

from collections.abc import Sequence
from typing import Any

from pydantic import BaseModel

from serve.protocol.responses import TextChoice, TextCompletion, TextCompletionChunk, TextLogprobs, TokenLogprob
from serve.replies.completion import Chunk, Reply
from serve.replies.generation import DrawnToken, Piece


class TextReply(Reply):
    """The answer to a CompletionRequest."""

    _prefix = "cmpl"

    def _whole(self, texts: list[str], thoughts: list[str], tokens: list[list[DrawnToken]]) -> BaseModel:
        choices = [
            TextChoice(
                index=index,
                text=(self._generations[index].prompt_text or "") + text,
                logprobs=self._with_prompt(index, drawn),
                finish_reason=self._generations[index].finish_reason,
                stop_reason=self._generations[index].stop_reason,
                token_ids=self._ids(index),
                prompt_token_ids=self._generations[index].prompt_ids if self._has_ids else None,
                prompt_logprobs=self._prompt_logprobs(index),
            )
            for index, (text, drawn) in enumerate(zip(texts, tokens, strict=True))
        ]
        return TextCompletion(**self._common(), choices=choices, usage=self.usage())

    def _opening(self, index: int) -> Chunk | None:
        text = self._generations[index].prompt_text
        if text is None:
            return None
        return self._chunk(
            [TextChoice(index=index, text=text, logprobs=self._with_prompt(index, []), finish_reason=None)]
        )

    def _event(self, index: int, piece: Piece | None) -> Chunk:
        if piece is None:
            reason, cause = self._generations[index].finish_reason, self._generations[index].stop_reason
            end = TextChoice(index=index, text="", logprobs=None, finish_reason=reason, stop_reason=cause)
            return self._chunk([end])
        logprobs = self._logprobs(piece.tokens, len(self._generations[index].prompt_text or ""))
        return self._chunk([TextChoice(index=index, text=piece.text, logprobs=logprobs, finish_reason=None)])

    def _tell_prompt(self, event: Any, index: int) -> None:
        event.choices[0].prompt_token_ids = self._generations[index].prompt_ids

    def _logprobs(self, tokens: Sequence[DrawnToken], begin: int = 0) -> TextLogprobs | None:
        """Log-probabilities of tokens of the reply, which starts at `begin` in the answer's text."""
        if not self._with_logprobs:
            return None
        found = [token.logprob for token in tokens]
        return TextLogprobs(
            tokens=[token.token for token in found],
            token_logprobs=[token.logprob for token in found],
            top_logprobs=[_tops(token) for token in found],
            text_offset=[begin + token.offset for token in tokens],
        )

    def _with_prompt(self, index: int, tokens: Sequence[DrawnToken]) -> TextLogprobs | None:
        """The same, with those of the prompt if the answer echoes it."""
        generation = self._generations[index]
        found = self._logprobs(tokens, len(generation.prompt_text or ""))
        if found is None or generation.prompt_text is None:
            return found
        # Of several replies to one prompt, the first has them.
        asked = self._generations[index - index % self._n].prompt_tokens()
        names = [generation.token_name(token_id) for token_id in generation.prompt_ids]
        return TextLogprobs(
            tokens=names + found.tokens,
            token_logprobs=[told.logprob if told else None for _, told in asked] + found.token_logprobs,
            top_logprobs=[_tops(told) if told else None for _, told in asked] + found.top_logprobs,
            text_offset=[place for place, _ in asked] + found.text_offset,
        )

    def _chunk(self, choices: list[TextChoice]) -> TextCompletionChunk:
        return TextCompletionChunk(object="text_completion", **self._common(), choices=choices)


def _tops(token: TokenLogprob) -> dict[str, float]:
    return {top.token: top.logprob for top in token.top_logprobs}
