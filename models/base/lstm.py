"""An LSTM (Hochreiter and Schmidhuber 1997) as a Hugging Face causal language model.

Importing this module registers it with transformers' Auto classes, so `models.base.load.load_model` opens its
folders.

Shape suffixes: B rows, T tokens, C conversations packed in a row, H hidden size, V vocabulary, Z noise size.
"""

from collections.abc import Sequence
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, DynamicCache, GenerationMixin, PreTrainedModel
from transformers.configuration_utils import PretrainedConfig
from transformers.modeling_outputs import CausalLMOutputWithPast


class LstmConfig(PretrainedConfig):  # type: ignore[misc]
    """`hidden_size` is also the size of the embeddings; `noise_size` 0 means no noise."""

    model_type = "rayconteur-lstm"

    def __init__(
        self,
        vocab_size: int = 4096,
        hidden_size: int = 256,
        num_hidden_layers: int = 1,
        dropout: float = 0.0,
        noise_size: int = 0,
        max_position_embeddings: int = 1 << 20,
        initializer_range: float = 0.1,
        tie_word_embeddings: bool = False,
        **kwargs: Any,
    ) -> None:
        self.vocab_size = vocab_size
        self.hidden_size = hidden_size
        self.num_hidden_layers = num_hidden_layers
        self.dropout = dropout
        self.noise_size = noise_size
        self.max_position_embeddings = max_position_embeddings
        self.initializer_range = initializer_range
        super().__init__(tie_word_embeddings=tie_word_embeddings, **kwargs)


class LstmCache(DynamicCache):  # type: ignore[misc]
    """The state (h, c), each [layers, B, H], in place of keys and values."""

    def __init__(self, state: tuple[torch.Tensor, torch.Tensor] | None = None) -> None:
        super().__init__()
        self.state = state

    def batch_repeat_interleave(self, repeats: int) -> None:
        """Each row `repeats` times."""
        if self.state is not None:
            h, c = (part.repeat_interleave(repeats, dim=1) for part in self.state)
            self.state = h, c

    def batch_select_indices(self, indices: torch.Tensor) -> None:
        """Keep only these rows."""
        if self.state is not None:
            h, c = (part.index_select(1, indices) for part in self.state)
            self.state = h, c


class LstmForCausalLM(PreTrainedModel, GenerationMixin):  # type: ignore[misc]
    """Embedding, LSTM, and a linear head over the vocabulary.

    With noise, each conversation (or all that start with the same piece) starts with z ~ N(0, 1)^Z, from which a
    linear layer makes the LSTM's first h: the generator's G(z, history) of adversarial training. `noise` [B or C, Z]
    sets z; otherwise it is sampled.
    """

    config_class = LstmConfig
    base_model_prefix = "model"
    main_input_name = "input_ids"
    _tied_weights_keys = {"lm_head.weight": "embed_tokens.weight"}  # noqa: RUF012
    _supports_attention_backend = True
    _supports_sdpa = True
    _is_stateful = True

    def __init__(self, config: LstmConfig) -> None:
        super().__init__(config)
        size, layers = config.hidden_size, config.num_hidden_layers
        self.embed_tokens = torch.nn.Embedding(config.vocab_size, size)
        self.lstm = torch.nn.LSTM(size, size, layers, batch_first=True, dropout=config.dropout if layers > 1 else 0.0)
        self.dropout = torch.nn.Dropout(config.dropout)
        self.lm_head = torch.nn.Linear(size, config.vocab_size, bias=not config.tie_word_embeddings)
        if config.noise_size:
            self.noise = torch.nn.Linear(config.noise_size, layers * size)
        self.post_init()

    def _init_weights(self, module: Any) -> None:
        """Uniform; the forget gate's bias is 1 (Jozefowicz et al. 2015)."""
        reach = self.config.initializer_range
        if isinstance(module, torch.nn.Embedding | torch.nn.Linear | torch.nn.LSTM):
            for name, parameter in module.named_parameters(recurse=False):
                torch.nn.init.zeros_(parameter) if "bias" in name else torch.nn.init.uniform_(
                    parameter, -reach, reach
                )
                if name.startswith("bias_ih"):
                    size = parameter.shape[0] // 4
                    torch.nn.init.ones_(parameter[size : 2 * size])

    def get_input_embeddings(self) -> torch.nn.Embedding:
        return self.embed_tokens

    def set_input_embeddings(self, value: torch.nn.Embedding) -> None:
        self.embed_tokens = value

    def get_output_embeddings(self) -> torch.nn.Linear:
        return self.lm_head

    def set_output_embeddings(self, new_embeddings: torch.nn.Linear) -> None:
        self.lm_head = new_embeddings

    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        past_key_values: Any = None,
        inputs_embeds: torch.Tensor | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int | torch.Tensor = 0,
        noise: torch.Tensor | None = None,
        **packed: Any,
    ) -> CausalLMOutputWithPast:
        """Logits [B, T, V], only at the positions of `logits_to_keep` (the last ones, or a tensor of them).

        With `sequence_lengths` (and `prefixes`: models/packing.py) the input [1, T] is a packed row of pieces, each
        of which starts a conversation or continues another piece. Without it rows may be padded on either side,
        where `attention_mask` is 0.
        """
        sequence_lengths: list[int] | None = packed.get("sequence_lengths")
        embedded = self.embed_tokens(input_ids) if inputs_embeds is None else inputs_embeds
        if sequence_lengths is not None:
            hidden, state = self._packed(embedded, sequence_lengths, packed.get("prefixes", ()), noise), None
        else:
            known = getattr(past_key_values, "state", None)
            hidden, state = self._rows(self.dropout(embedded), attention_mask, known, noise)
        hidden = self.dropout(hidden)
        kept = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) and logits_to_keep else logits_to_keep
        if not isinstance(kept, int):
            hidden = hidden[:, kept]
        cache = None
        if use_cache and state is not None:
            cache = past_key_values if past_key_values is not None else LstmCache()
            cache.state = state
        return CausalLMOutputWithPast(logits=self.lm_head(hidden), past_key_values=cache)

    def _first_state(self, rows: int, noise: torch.Tensor | None, like: torch.Tensor) -> Any:
        """(h, c) [layers, B, H] before the first token; None for zeros."""
        if not self.config.noise_size:
            return None
        if noise is None:
            noise = torch.randn(rows, self.config.noise_size, device=like.device)
        h = (
            self.noise(noise.to(like.dtype))
            .view(rows, self.config.num_hidden_layers, -1)
            .transpose(0, 1)
            .contiguous()
        )
        return h, torch.zeros_like(h)

    def _packed(
        self, embedded: torch.Tensor, lengths: list[int], prefixes: Sequence[int], noise: torch.Tensor | None
    ) -> torch.Tensor:
        """[1, T, H]: the hidden states of a packed row."""
        embedded = self.dropout(embedded)[0]
        parents = prefixes or [-1] * len(lengths)
        pieces = [piece for piece, parent in enumerate(parents) if parent < 0]
        state = self._first_state(len(pieces), noise, embedded)
        hidden, places = [], []
        while pieces:
            row_of = {piece: row for row, piece in enumerate(pieces)}
            then = [piece for piece, parent in enumerate(parents) if parent in row_of]
            read, state, where = self._pieces(embedded, lengths, pieces, state, is_gone_on=bool(then))
            hidden.append(read)
            places.append(where)
            if then:
                rows = torch.tensor([row_of[parents[piece]] for piece in then], device=embedded.device)
                state = tuple(each.index_select(1, rows) for each in state)
            pieces = then
        if len(hidden) == 1:
            return hidden[0][None]
        return torch.cat(hidden).index_select(0, torch.cat(places).argsort())[None]

    def _pieces(
        self, embedded: torch.Tensor, lengths: list[int], pieces: list[int], state: Any, is_gone_on: bool = False
    ) -> tuple[torch.Tensor, Any, torch.Tensor]:
        """Run some pieces of the row [T, H], each from its state: the hidden states, the state after each piece if
        another continues it, and the positions in the row.
        """
        counts = torch.tensor(lengths, device=embedded.device)
        starts, counts = (counts.cumsum(0) - counts)[pieces], counts[pieces]
        offsets = torch.arange(int(counts.max()), device=embedded.device)
        is_token = (offsets < counts[:, None]).flatten().nonzero()[:, 0]  # of [C, longest]
        places = (starts[:, None] + offsets).clamp(max=len(embedded) - 1)
        # Selected by index: the gradient of each slice would be as long as the whole row.
        rows: Any = embedded.index_select(0, places.flatten()).view(*places.shape, -1)
        if is_gone_on:  # padding after a piece's end would change its state
            rows = torch.nn.utils.rnn.pack_padded_sequence(rows, counts.cpu(), batch_first=True, enforce_sorted=False)
        hidden, state = self.lstm(rows, state)
        if is_gone_on:
            hidden, _ = torch.nn.utils.rnn.pad_packed_sequence(hidden, batch_first=True)
        return hidden.flatten(0, 1).index_select(0, is_token), state, places.flatten().index_select(0, is_token)

    def _rows(
        self, embedded: torch.Tensor, mask: torch.Tensor | None, state: Any, noise: torch.Tensor | None
    ) -> tuple[torch.Tensor, Any]:
        """[B, T, H] and the state after each row's last token."""
        if state is None:
            state = self._first_state(len(embedded), noise, embedded)
        num_new = embedded.shape[1]
        if mask is None or bool(mask[:, -num_new:].all()):
            return self.lstm(embedded, state)  # type: ignore[no-any-return]
        # Padding moves to the right, where it does not affect the state.
        order = (1 - mask[:, -num_new:].long()).argsort(dim=1, stable=True)
        places = order[:, :, None].expand_as(embedded)
        lengths = mask[:, -num_new:].sum(dim=1).clamp(min=1).cpu()
        packed = torch.nn.utils.rnn.pack_padded_sequence(
            embedded.gather(1, places), lengths, batch_first=True, enforce_sorted=False
        )
        output, state = self.lstm(packed, state)
        hidden, _ = torch.nn.utils.rnn.pad_packed_sequence(output, batch_first=True, total_length=num_new)
        return torch.zeros_like(hidden).scatter(1, places, hidden), state

    def prepare_inputs_for_generation(
        self, input_ids: torch.Tensor, past_key_values: Any = None, attention_mask: Any = None, **kwargs: Any
    ) -> dict[str, Any]:
        """Called by transformers' `generate` for each token."""
        has_begun = getattr(past_key_values, "state", None) is not None
        return {
            "input_ids": input_ids[:, -1:] if has_begun else input_ids,
            "attention_mask": None if has_begun else attention_mask,
            "past_key_values": past_key_values,
            "use_cache": True,
            "logits_to_keep": 1,
        }


AutoConfig.register(LstmConfig.model_type, LstmConfig)
AutoModelForCausalLM.register(LstmConfig, LstmForCausalLM)
