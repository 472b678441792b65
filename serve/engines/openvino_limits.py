"""What OpenVINO's pipeline cannot do justice to in a request."""

import json

from serve.engines.base import GenerationRequest
from serve.engines.openvino_schema import unsure


def beyond_pipeline(request: GenerationRequest) -> tuple[str, str] | None:
    """The field, and why, in words for whoever has sent it; None where the pipeline does all of it."""
    if request.logit_bias:
        return "logit_bias", "OpenVINO changes no scores by token. Leave the field out"
    if request.allowed_token_ids is not None:
        return "allowed_token_ids", "OpenVINO changes no scores by token. Leave the field out"
    if request.bad_words:
        return "bad_words", "OpenVINO changes no scores by token. Leave the field out"
    if request.num_prompt_logprobs is not None:
        why = "OpenVINO does not tell the log-probabilities of a prompt. Leave echo, logprobs and prompt_logprobs out"
        return "echo", why
    if request.num_logprobs:
        return "top_logprobs", "OpenVINO tells the drawn token's log-probability alone. Ask for none of others"
    if request.num_logprobs is not None and (request.changes_scores or not request.is_greedy):
        return "logprobs", (
            "OpenVINO tells them as changed by temperature, penalties and formats. Ask for them with temperature 0 "
            "and none of these"
        )
    return _beyond_grammars(request)


def _beyond_grammars(request: GenerationRequest) -> tuple[str, str] | None:
    grammar = request.grammar
    if grammar is None:
        return None
    if grammar.schema is not None:
        what = unsure(json.loads(grammar.schema))
        if what is None:
            return None
        return grammar.param, f"OpenVINO is not known to follow {what} in a schema. Leave that rule out"
    if grammar.param == "tools":
        return "tool_choice", "OpenVINO cannot be made to call a tool. With auto the model chooses"
    if grammar.param.startswith("response_format"):
        return grammar.param, (
            "OpenVINO lets no model think before it follows a format, and follows no constant that is spelled like a "
            "token of control. Turn thinking off (chat_template_kwargs), or name the constant in another way"
        )
    return grammar.param, "OpenVINO follows JSON schemas alone. Ask for one (response_format)"
