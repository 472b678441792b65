"""Whether an architecture keeps the conversations of a packed row apart, tested on a small random model of it.

    reading = reading_of(folder)         # of a Hugging Face folder; raises CannotBeTrained
    set_up(model, reading)               # now the model takes packed batches

The logits of two conversations in one row, one of which branches, and of each in its own row are compared with those
of each conversation alone with the model's own attention. The result is cached on this machine by config.json.
"""

import functools
import hashlib
import importlib.metadata
import json
import os
import random
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from models.base.errors import describe_error
from models.errors import RayconteurError
from models.files import cache_folder

if TYPE_CHECKING:
    import torch  # at run time only inside functions: `plan` needs no torch for a cached result

How = Literal["packed", "padded", "alone"]

# The largest difference of logits, relative to the largest one: float32 sums in a different order.
TOLERANCE = 1e-4
_SOURCES = (
    "base/packing_check.py", "base/small_model.py",
    "kernels/attention.py", "kernels/blocked_attention.py", "kernels/rows.py",
)  # fmt: skip


class CannotBeTrained(RayconteurError):
    """An architecture cannot be trained on conversations."""


@dataclass(frozen=True)
class Reading:
    """How a model reads a packed batch."""

    how: How
    """`models.kernels.rows.How`"""
    why: str = ""
    """the reason, if it is not packed"""
    longest_short: int | None = None
    """`models.kernels.rows.read_in_rows`"""


def reading_of(folder: Path | str) -> Reading:
    """How the model of a Hugging Face folder reads a packed batch; raises CannotBeTrained."""
    content = (Path(folder) / "config.json").read_bytes()
    return _known(hashlib.sha256(b"\0".join([content, *_versions()])).hexdigest()[:24], str(folder))


@functools.lru_cache(maxsize=16)
def _known(key: str, folder: str) -> Reading:
    file = cache_folder() / "readings" / f"{key}.json"
    if file.is_file():
        found = json.loads(file.read_text())
    else:
        try:
            found = asdict(try_out(config_of(folder)))
        except CannotBeTrained as error:
            found = {"refused": str(error)}
        file.parent.mkdir(parents=True, exist_ok=True)
        unfinished = file.with_suffix(f".{os.getpid()}")
        unfinished.write_text(json.dumps(found))
        unfinished.replace(file)
    if "refused" in found:
        raise CannotBeTrained(found["refused"])
    return Reading(**found)


def _versions() -> list[bytes]:
    """What the result depends on beside the config."""
    here = Path(__file__).parents[1]
    versions = [importlib.metadata.version(package).encode() for package in ("torch", "transformers")]
    return versions + [(here / name).read_bytes() for name in _SOURCES]


def config_of(folder: Path | str) -> Any:
    """The config of a Hugging Face folder; raises CannotBeTrained if transformers has no such architecture."""
    from transformers import AutoConfig

    import models.base.lstm  # noqa: F401  # known to transformers from here on

    try:
        return AutoConfig.from_pretrained(str(folder))
    except Exception as error:  # of any architecture's own code
        raise CannotBeTrained(
            f"base_model: transformers cannot read its config.json: {describe_error(error)}"
        ) from error


def set_up(model: Any, reading: Reading) -> None:
    """Make a model with the attention `attention_of(reading)` take packed batches."""
    from models.kernels.rows import read_in_rows

    if reading.how != "packed" or reading.longest_short is not None:
        read_in_rows(model, reading.how, reading.longest_short)


def attention_of(reading: Reading) -> str | None:
    """The name of the attention for packed batches; None for transformers' own choice."""
    from models.kernels.attention import PACKED_ATTENTION

    return PACKED_ATTENTION if reading.how == "packed" else None


def try_out(config: Any) -> Reading:
    """The result for a small model of this config; raises CannotBeTrained."""
    from models.base.small_model import NoSmallModel, check_builds, small_model

    name = f"base_model: {config.model_type}"
    check_text(config)
    longest_short = short_length(config)
    try:
        trial = _Trial(small_model(config))
    except NoSmallModel as error:
        try:
            check_builds(config)
        except NoSmallModel as of_itself:
            raise CannotBeTrained(f"{name} cannot be opened: {of_itself}") from error
        return Reading("alone", f"it could not be tested on a small model: {error}")
    why = trial.why_not(Reading("packed"))
    if not why:
        return Reading("packed", longest_short=longest_short)
    for reading in (Reading("padded", why), Reading("alone", why)):
        why_not = trial.why_not(reading)
        if not why_not:
            return reading
    raise CannotBeTrained(f"{name} cannot be trained here, not even on single conversations: {why_not}")


def check_text(config: Any) -> None:
    """Raise CannotBeTrained unless this is a causal language model."""
    from transformers import AutoModelForCausalLM

    if type(config) not in AutoModelForCausalLM._model_mapping:
        raise CannotBeTrained(
            f"base_model: transformers has no causal language model of model_type {config.model_type!r}; choose a "
            "model that continues text"
        )
    try:
        config.get_text_config()
    except ValueError as error:
        raise CannotBeTrained(
            f"base_model: {config.model_type} is not a text-only model: {describe_error(error)}"
        ) from error


def short_length(config: Any) -> int | None:
    """The longest conversation that uses LongRoPE's short factors (Ding et al. 2024, arXiv:2402.13753), in tokens;
    the longest one in a batch decides for all of it. None without LongRoPE.
    """
    parameters = getattr(config.get_text_config(), "rope_parameters", None) or {}
    kinds = [parameters, *(each for each in parameters.values() if isinstance(each, dict))]
    limits = [each.get("original_max_position_embeddings") for each in kinds if each.get("rope_type") == "longrope"]
    return min((int(limit) for limit in limits if limit), default=None)


class _Trial:
    """A small model, and its logits of three single conversations."""

    def __init__(self, model: Any) -> None:
        """Raises CannotBeTrained."""
        from models.base.small_model import VOCABULARY
        from models.packing import pack_trees
        from models.trees import Tree

        self._model = model
        most = min(VOCABULARY, model.config.get_text_config().vocab_size)
        draw = random.Random(0)
        tokens = [draw.randrange(min(3, most - 1), most) for _ in range(99)]
        begin, reply, rest, other = tokens[:15], tokens[15:21], tokens[21:46], tokens[46:]
        pieces = [begin, reply, rest]
        tree = Tree(pieces, [-1, 0, 0], [[True] * len(piece) for piece in pieces])
        self._batch = pack_trees([tree, Tree([other], [-1], [[True] * len(other)])])
        self._whole = [begin + reply, begin + rest, other]
        try:
            first, second, third = [self._alone(each) for each in self._whole]
            again, changed = self._alone(other), self._alone(other[:20] + other[:-20])
        except Exception as error:  # of any architecture's own code
            raise CannotBeTrained(
                f"base_model: {model.config.model_type} needs other inputs than token ids: {describe_error(error)}"
            ) from error
        # The shared beginning of both replies is read once, in the first one.
        self._expected = _joined([first[:-1], first[14:15], second[15:-1], third[:-1]])
        for found, wanted, what in (
            (again, third, "is not deterministic"),
            (changed[:20], third[:20], "uses later tokens to predict a token, so it is not causal"),
        ):
            if _distance(found, wanted) > TOLERANCE:
                raise CannotBeTrained(f"base_model: {model.config.model_type} {what}")

    def _alone(self, tokens: list[int]) -> "torch.Tensor":
        import torch

        with torch.no_grad():
            return self._model(input_ids=torch.tensor([tokens]), use_cache=False).logits[0]  # type: ignore[no-any-return]

    def why_not(self, reading: Reading) -> str:
        """What is wrong with this reading of a packed batch; empty if nothing is."""
        import torch

        from models.generation import own_attention
        from models.kernels.loss import supervised_logits

        plain = self._model.forward
        try:
            self._model.set_attn_implementation(attention_of(reading) or own_attention(self._model))
            set_up(self._model, reading)
            with torch.no_grad():
                distance = _distance(supervised_logits(self._model, self._batch), self._expected)
        except Exception as error:  # of any architecture's own code
            return describe_error(error)
        finally:
            self._model.forward = plain
            self._model.__dict__.pop("reads_in_rows", None)
            self._model.set_attn_implementation("eager")
        if distance <= TOLERANCE:
            return ""
        return f"its logits differ by {distance:.2g} of the largest from those of single conversations"


def _joined(parts: "list[torch.Tensor]") -> "torch.Tensor":
    import torch

    return torch.cat(parts)


def _distance(found: "torch.Tensor", wanted: "torch.Tensor") -> float:
    """The largest difference relative to the largest value; infinite if there is a NaN."""
    share = float((found - wanted).abs().max() / wanted.abs().max())
    return share if share == share else float("inf")
