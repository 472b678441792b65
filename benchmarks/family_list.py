"""The families that families.py tests: their tokenizers, templates and end tokens.

The end tokens are written here as published with the models, not derived from the template as `models/chat` does.
"""

from dataclasses import dataclass

OWN, WORDS, OURS = "own", "words", "ours"


@dataclass(frozen=True)
class Family:
    """`template` is `own` (the tokenizer package's), `trl:NAME`, `axolotl:NAME`, `words:NAME` (family_templates.py),
    or `ours` (the one for tokenizers without any).
    """

    name: str
    tokenizer: str
    template: str
    end: str
    """the token that ends a reply with text"""
    model_ends: tuple[str, ...] = ()
    """the end tokens in its generation_config.json"""
    call_end: str = ""
    """the token that ends a call, if another one"""
    end_is_next: bool = False
    """whether these begin the next turn and are not part of the reply"""
    eos: str = ""
    """the tokenizer's end token, if the package has another one"""
    tokens: tuple[str, ...] = ()
    """control tokens that the tokenizer lacks, because it is another model's"""
    text_tokens: tuple[str, ...] = ()
    """those of them that are not special"""
    arguments_are_text: bool = False
    """whether the template takes a call's arguments as a JSON string"""
    opens_thinking: str = ""
    """the end of a prompt that is not written before earlier replies"""
    system_in_question: bool = False
    """whether the template refuses system messages, so that users would write them before the first user message"""
    thinks_beside_calls: bool = False
    """whether text beside a call is written as thinking"""
    bos: str = ""
    note: str = ""
    """about the tokenizer or template, for the table"""

    @property
    def ends(self) -> set[str]:
        """All tokens that end a reply."""
        return {self.end, self.call_end, *self.model_ends} - {""}


_LLAMA_ENDS = ("<|end_of_text|>", "<|eom_id|>", "<|eot_id|>")
_LLAMA_TOOLS = ("<|eom_id|>", "<|python_tag|>")
_QWEN_ENDS = ("<|im_end|>", "<|endoftext|>")
_MISTRAL = ("[INST]", "[/INST]", "[TOOL_CALLS]", "[AVAILABLE_TOOLS]", "[/AVAILABLE_TOOLS]", "[TOOL_RESULTS]",
            "[/TOOL_RESULTS]")  # fmt: skip
_GLM = ("[gMASK]", "<sop>", "<|user|>", "<|assistant|>", "<|system|>", "<|observation|>", "<|endoftext|>")
_GLM_ENDS = ("<|endoftext|>", "<|user|>", "<|observation|>")
_COHERE = ("<|START_OF_TURN_TOKEN|>", "<|END_OF_TURN_TOKEN|>", "<|USER_TOKEN|>", "<|CHATBOT_TOKEN|>",
           "<|SYSTEM_TOKEN|>", "<|START_RESPONSE|>", "<|END_RESPONSE|>", "<|START_THINKING|>", "<|END_THINKING|>",
           "<|START_ACTION|>", "<|END_ACTION|>")  # fmt: skip
_PHI = ("<|end|>", "<|user|>", "<|assistant|>", "<|system|>", "<|endoftext|>")
_LFM_TOOLS = ("<|tool_list_start|>", "<|tool_list_end|>", "<|tool_response_start|>", "<|tool_response_end|>",
              "<|tool_call_start|>", "<|tool_call_end|>")  # fmt: skip
_GEMMA_4 = ("<|turn>", "<turn|>", "<|tool_call>", "<tool_call|>", "<|channel>", "<channel|>", "<|think|>", "<|tool>",
            "<tool|>", "<|tool_response>", "<tool_response|>", '<|"|>')  # fmt: skip
_GLM_TAGS = ("<think>", "</think>", "<tool_call>", "</tool_call>", "<tool_response>", "</tool_response>",
             "<arg_key>", "</arg_key>", "<arg_value>", "</arg_value>", "/nothink")  # fmt: skip
_THINK = ("<think>", "</think>")
_EOT, _IM, _EOS = "<|eot_id|>", "<|im_end|>", "<｜end▁of▁sentence｜>"

FAMILIES = [
    Family("Llama 3", "llama3", "trl:llama3", _EOT, ("<|end_of_text|>", _EOT)),
    Family("Llama 3, as first published", "llama3", OWN, _EOT, ("<|end_of_text|>", _EOT),
           note="its template opens the next turn unasked"),
    Family("Llama 3.1", "llama3_1", "trl:llama3_1", _EOT, _LLAMA_ENDS, tokens=_LLAMA_TOOLS,
           note="the package lacks the names <|eom_id|> and <|python_tag|>, which are added"),
    Family("Llama 3.2", "llama3_1", "trl:llama3_2", _EOT, _LLAMA_ENDS, tokens=_LLAMA_TOOLS,
           note="Llama 3.1's tokenizer, as Llama 3.2 has it"),
    Family("Qwen2.5", "qwen3", "trl:qwen2_5", _IM, _QWEN_ENDS, note="Qwen3's tokenizer has a few tokens more"),
    Family("Qwen3", "qwen3", OWN, _IM, _QWEN_ENDS),
    Family("Qwen3-2507 Instruct", "qwen3", "trl:qwen3_instruct_2507", _IM, _QWEN_ENDS),
    Family("Qwen3-2507 Thinking", "qwen3", "words:qwen3_thinking_2507", _IM, _QWEN_ENDS,
           opens_thinking="<think>\n"),
    Family("Qwen3.5, thinking", "qwen3", "trl:qwen3_5_think", _IM, _QWEN_ENDS, note="near: Qwen3's tokenizer"),
    Family("Qwen3.5, small", "qwen3", "trl:qwen3_5_nothink", _IM, _QWEN_ENDS, note="near: Qwen3's tokenizer"),
    Family("Gemma 2", "gemma3", "trl:gemma", "<end_of_turn>", ("<eos>", "<end_of_turn>"), eos="<eos>",
           system_in_question=True, note="near: Gemma 3's tokenizer"),
    Family("Gemma 3", "gemma3", OWN, "<end_of_turn>", ("<eos>", "<end_of_turn>"), eos="<eos>"),
    Family("Gemma 4, at its release", "gemma3", "trl:gemma4_v2", "<turn|>", ("<eos>", "<turn|>", "<|tool_response>"),
           eos="<eos>", tokens=_GEMMA_4, note="near: Gemma 3's tokenizer"),
    Family("Gemma 4, at 8995379", "gemma3", "trl:gemma4_v5", "<turn|>", ("<eos>", "<turn|>", "<|tool_response>"),
           call_end="<|tool_response>", eos="<eos>", tokens=_GEMMA_4, note="near: Gemma 3's tokenizer"),
    Family("gpt-oss", "gptoss", "trl:gptoss", "<|return|>", ("<|return|>", "<|endoftext|>", "<|call|>"),
           call_end="<|call|>", thinks_beside_calls=True),
    Family("DeepSeek V3", "deepseek_v3", OWN, _EOS, (_EOS,), arguments_are_text=True),
    Family("DeepSeek R1", "deepseek_v3", "trl:deepseekv3", _EOS, (_EOS,), arguments_are_text=True,
           opens_thinking="<think>\n", text_tokens=_THINK,
           note="the file's name is V3's, the template is R1's: it opens the thinking"),
    Family("DeepSeek R1 Distill", "deepseek_v3", "trl:deepseek_r1_distill", _EOS, (_EOS,), arguments_are_text=True,
           opens_thinking="<think>\n", text_tokens=_THINK),
    Family("Mistral v0.3", "llama2", "axolotl:mistral_v2v3", "</s>", ("</s>",), tokens=_MISTRAL,
           note="near: Llama 2's tokenizer, of the same kind"),
    Family("Mistral Nemo", "llama3_1", "axolotl:mistral_v3_tekken", "</s>", ("</s>",), eos="</s>", bos="<s>",
           tokens=("<s>", "</s>", *_MISTRAL), note="near: Llama 3.1's tokenizer, of the same kind"),
    Family("Mistral Small 3", "llama3_1", "axolotl:mistral_v7_tekken", "</s>", ("</s>",), eos="</s>", bos="<s>",
           tokens=("<s>", "</s>", "[SYSTEM_PROMPT]", "[/SYSTEM_PROMPT]", *_MISTRAL),
           note="near: Llama 3.1's tokenizer, of the same kind"),
    Family("Phi-3.5", "llama2", "trl:phi3_5", "<|end|>", ("<|end|>", "<|assistant|>", "<|endoftext|>"),
           eos="<|endoftext|>", tokens=_PHI, note="Llama 2's tokenizer, as Phi-3.5 has it"),
    Family("Phi-4-mini", "gptoss", "words:phi_4_mini", "<|end|>", ("<|end|>", "<|endoftext|>"), eos="<|endoftext|>",
           tokens=("<|user|>", "<|assistant|>", "<|system|>", "<|tool|>", "<|/tool|>"),
           note="near: gpt-oss's tokenizer, with the same vocabulary of text"),
    Family("GLM-4", "llama3_1", "words:glm_4", "<|user|>", _GLM_ENDS, call_end="<|observation|>", end_is_next=True,
           eos="<|endoftext|>", tokens=_GLM, note="near: Llama 3.1's tokenizer"),
    Family("GLM-4.5", "llama3_1", "trl:glm4moe", "<|user|>", _GLM_ENDS, call_end="<|observation|>", end_is_next=True,
           eos="<|endoftext|>", tokens=_GLM, text_tokens=_GLM_TAGS,
           note="near: Llama 3.1's tokenizer"),
    Family("Cohere2", "llama3_1", "trl:cohere2", "<|END_OF_TURN_TOKEN|>", ("<|END_OF_TURN_TOKEN|>",),
           eos="<|END_OF_TURN_TOKEN|>", tokens=_COHERE, note="near: Llama 3.1's tokenizer"),
    Family("Cohere2, Command A", "llama3_1", "axolotl:command_a", "<|END_OF_TURN_TOKEN|>",
           ("<|END_OF_TURN_TOKEN|>",), eos="<|END_OF_TURN_TOKEN|>", tokens=_COHERE,
           note="near: Llama 3.1's tokenizer"),
    Family("LFM2", "qwen3", "trl:lfm2", _IM, (_IM,), bos="<|startoftext|>", tokens=("<|startoftext|>", *_LFM_TOOLS),
           note="near: Qwen3's tokenizer"),
    Family("LFM2, since 40f3da0", "qwen3", "trl:lfm2_v2", _IM, (_IM,), bos="<|startoftext|>",
           tokens=("<|startoftext|>", *_LFM_TOOLS), note="near: Qwen3's tokenizer"),
    Family("LFM2.5", "qwen3", "trl:lfm2_2_5_v2", _IM, (_IM,), bos="<|startoftext|>",
           tokens=("<|startoftext|>", *_LFM_TOOLS), note="near: Qwen3's tokenizer"),
    Family("SmolLM2", "smollm2", OWN, _IM, (_IM,)),
    Family("SmolLM3", "llama3_1", "words:smollm3", _IM, (_IM,), eos=_IM, tokens=("<|im_start|>", _IM),
           text_tokens=("<think>", "</think>", "<tool_call>", "</tool_call>"),
           note="Llama 3.1's tokenizer with its own names, as SmolLM3 has it"),
    Family("GPT-2", "qwen3", OURS, "<|endoftext|>", ("<|endoftext|>",), eos="<|endoftext|>",
           note="near: Qwen3's tokenizer, without a template"),
]  # fmt: skip
