"""A model trained from scratch: a tokenizer learned from the conversations, and random weights.

tokenizer = learn_tokenizer(texts, vocabulary=4096)
make_new_model(tokenizer, folder, architecture="lstm", hidden_size=256, num_layers=1)
"""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

ROLE_TOKENS = ("<|system|>", "<|user|>", "<|assistant|>")
END_TOKEN = "<|end|>"
_HEAD_SIZE = 64
_MAX_POSITIONS = 4096

# One token opens a turn and another one ends it: short contexts have no room for more.
_CHAT_TEMPLATE = (
    "{% for message in messages %}{{ '<|' + message['role'] + '|>' + message['content'] }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


def learn_tokenizer(texts: Iterable[str], vocabulary: int) -> Any:
    """A byte-level byte-pair tokenizer (Sennrich et al. 2016, arXiv:1508.07909) of at most `vocabulary` tokens.

    It encodes any text, since every byte is a token. Each role has a token, and so has the end of a turn.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    special = [END_TOKEN, *ROLE_TOKENS]
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=special,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token=END_TOKEN, eos_token=END_TOKEN, pad_token=END_TOKEN,
        additional_special_tokens=list(ROLE_TOKENS), model_max_length=_MAX_POSITIONS,
    )  # fmt: skip
    fast.chat_template = _CHAT_TEMPLATE
    return fast


def make_new_model(
    tokenizer: Any,
    folder: Path,
    *,
    architecture: str,
    hidden_size: int,
    num_layers: int,
    dropout: float = 0.0,
    noise_size: int = 0,
    seed: int = 0,
) -> None:
    """Write a Hugging Face folder with random weights and the tokenizer.

    `architecture` is `lstm` (models/base/lstm.py) or `transformer` (Llama's, with heads of 64).
    """
    import torch

    ends = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        if architecture == "lstm":
            from models.base.lstm import LstmConfig, LstmForCausalLM

            model: Any = LstmForCausalLM(
                LstmConfig(
                    vocab_size=len(tokenizer), hidden_size=hidden_size, num_hidden_layers=num_layers,
                    dropout=dropout, noise_size=noise_size, max_position_embeddings=_MAX_POSITIONS, **ends,
                )
            )  # fmt: skip
        else:
            from transformers import LlamaConfig, LlamaForCausalLM

            heads = max(1, hidden_size // _HEAD_SIZE)
            model = LlamaForCausalLM(
                LlamaConfig(
                    vocab_size=len(tokenizer), hidden_size=hidden_size, intermediate_size=4 * hidden_size,
                    num_hidden_layers=num_layers, num_attention_heads=heads, num_key_value_heads=heads,
                    max_position_embeddings=_MAX_POSITIONS, tie_word_embeddings=True, **ends,
                )
            )  # fmt: skip
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
