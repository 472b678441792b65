"""perplexity: how likely a model finds a given reply. The models measure it; there is no reply to look at."""

from typing import Any, ClassVar

from models.chat.form import Message, MessageError
from models.chat.messages import normal_messages
from models.scorers.base import Scorer


class Perplexity(Scorer):
    """Expects the reply, a text or an assistant's message. The score is its mean -log p a token, in nats."""

    is_scored_by_loss: ClassVar[bool] = True

    def read(self, value: Any) -> Message:
        if isinstance(value, str):
            value = {"role": "assistant", "content": value}
        if not isinstance(value, dict) or value.get("role", "assistant") != "assistant":
            raise ValueError("`reply` must be a text or an assistant's message")
        question: Message = {"role": "user", "content": "?"}
        try:
            return normal_messages([question, {**value, "role": "assistant"}])[1]
        except MessageError as error:
            raise ValueError(f"`reply` is no assistant's message: {error}") from None

    def score(self, expected: Message, reply: Message) -> float:
        raise TypeError("the score of a given reply is its loss, which the models compute")
