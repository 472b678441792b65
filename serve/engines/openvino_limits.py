"""Fields of a request that OpenVINO's pipeline does not support."""

import json

from serve.engines.base import GenerationRequest
from serve.engines.openvino_schema import unsure


def beyond_pipeline(request: GenerationRequest) -> tuple[str, str] | None:
    """The unsupported field, and why, for the client; None if the pipeline supports the whole request."""
    if request.logit_bias:
        return "logit_bias", "OpenVINO cannot change logits of single tokens. Remove the field"
    if request.allowed_token_ids is not None:
        return "allowed_token_ids", "OpenVINO cannot change logits of single tokens. Remove the field"
    if request.bad_words:
        return "bad_words", "OpenVINO cannot change logits of single tokens. Remove the field"
    if request.num_prompt_logprobs is not None:
        return "echo", (
            "OpenVINO has no log-probabilities of the prompt. Remove echo and logprobs, or prompt_logprobs, or serve "
            "the release with serve.engine: torch"
        )
    if request.num_logprobs:
        return (
            "top_logprobs",
            "OpenVINO has only the sampled token's log-probability. Remove the field, or set it to 0",
        )
    if request.num_logprobs is not None and (request.changes_scores or not request.is_greedy):
        return "logprobs", (
            "OpenVINO's log-probabilities include effects of temperature, penalties and formats. Set temperature 0 "
            "and remove the others"
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
        return grammar.param, f"OpenVINO may not follow {what} in a schema. Remove that rule"
    if grammar.param == "tools":
        return "tool_choice", "OpenVINO cannot force a tool call. Use auto, with which the model decides"
    if grammar.param.startswith("response_format"):
        return grammar.param, (
            "OpenVINO supports no thinking before a formatted reply, and no constant that is spelled like a control "
            "token. Turn thinking off (chat_template_kwargs), or rename the constant"
        )
    return grammar.param, "OpenVINO only supports JSON schemas as formats. Use one (response_format)"
