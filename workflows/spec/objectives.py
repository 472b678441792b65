"""The section train.objective: what a training minimises."""

from typing import Annotated, ClassVar, Literal

from pydantic import Field

from workflows.spec.section import PositiveInt, Section, Share


class ObjectiveSpec(Section):
    """What training minimises. What it learns from, and what must be computed before it, are the class's own."""

    name: str

    examples: ClassVar[Literal["conversations", "pairs", "judged"]] = "conversations"
    """what a line of the data must be"""

    reference: ClassVar[Literal["none", "log_probabilities", "top_tokens", "replies", "own_replies"]] = "none"
    """what the stage `reference` computes: nothing, the replies' log-probabilities under the base model, a
    teacher's most likely tokens, or its replies, or replies of the base model's beside the real ones"""


class SftSpec(ObjectiveSpec):
    """Supervised fine-tuning."""

    name: Literal["sft"] = "sft"
    """Supervised fine-tuning: the cross-entropy of every reply."""


class DpoSpec(ObjectiveSpec):
    """Direct preference optimization (Rafailov et al. 2023, arXiv:2305.18290)."""

    examples = "pairs"
    reference = "log_probabilities"

    name: Literal["dpo"] = "dpo"
    """Direct preference optimization (Rafailov et al. 2023, arXiv:2305.18290), from pairs."""

    beta: Annotated[float, Field(gt=0.0, le=100.0)] = 0.1
    """Scale of the reward, the log-ratio to the base model: the larger, the closer the model stays to its base."""

    label_smoothing: Annotated[float, Field(ge=0.0, lt=0.5)] = 0.0
    """Probability that a pair is the wrong way round (conservative DPO)."""


class OrpoSpec(ObjectiveSpec):
    """Odds ratio preference optimization (Hong et al. 2024, arXiv:2403.07691)."""

    examples = "pairs"

    name: Literal["orpo"] = "orpo"
    """Odds ratio preference optimization (Hong et al. 2024, arXiv:2403.07691), from pairs, without a reference."""

    weight: Annotated[float, Field(ge=0.0, le=100.0)] = 0.1
    """Weight of the odds ratio beside the chosen reply's cross-entropy (the paper's lambda)."""


class KtoSpec(ObjectiveSpec):
    """Kahneman-Tversky optimization (Ethayarajh et al. 2024, arXiv:2402.01306)."""

    examples = "judged"
    reference = "log_probabilities"

    name: Literal["kto"] = "kto"
    """Kahneman-Tversky optimization (Ethayarajh et al. 2024, arXiv:2402.01306), from judged single replies."""

    beta: Annotated[float, Field(gt=0.0, le=100.0)] = 0.1
    """Scale of the reward, the log-ratio to the base model."""

    desirable_weight: Annotated[float, Field(ge=0.0, le=100.0)] = 1.0
    """Weight of desirable replies."""

    undesirable_weight: Annotated[float, Field(ge=0.0, le=100.0)] = 1.0
    """Weight of undesirable replies; weight times number should be about the same on both sides."""


class SimpoSpec(ObjectiveSpec):
    """Simple preference optimization (Meng et al. 2024, arXiv:2405.14734)."""

    examples = "pairs"

    name: Literal["simpo"] = "simpo"
    """Simple preference optimization (Meng et al. 2024, arXiv:2405.14734), from pairs, without a reference."""

    beta: Annotated[float, Field(gt=0.0, le=100.0)] = 2.0
    """Scale of the reward, the mean log-probability of a reply's tokens."""

    gamma: Annotated[float, Field(ge=0.0, le=100.0)] = 1.0
    """By how much the chosen reply's reward should be above the rejected one's."""


class DistillSpec(ObjectiveSpec):
    """Distillation (Hinton et al. 2015, arXiv:1503.02531)."""

    reference = "top_tokens"

    name: Literal["distill"] = "distill"
    """Distillation (Hinton et al. 2015, arXiv:1503.02531) of a teacher model, on conversations."""

    teacher: Annotated[str, Field(min_length=1)]
    """The model to learn from, named like `base_model`; its tokenizer must be the base model's."""

    top_k: Annotated[int, Field(ge=1, le=4096)] = 32
    """How many of the teacher's likeliest tokens are stored at each supervised position; the rest are one outcome."""

    temperature: Annotated[float, Field(ge=0.1, le=100.0)] = 1.0
    """Both models' distributions are softened by it before they are compared."""

    plain_share: Share = 0.5
    """Share of the plain cross-entropy in the loss; the rest is the divergence from the teacher."""


class DistillRepliesSpec(ObjectiveSpec):
    """Sequence-level distillation (Kim and Rush 2016, arXiv:1606.07947)."""

    reference = "replies"

    name: Literal["distill_replies"] = "distill_replies"
    """Sequence-level distillation (Kim and Rush 2016, arXiv:1606.07947): the cross-entropy of the reply that a
    teacher writes, greedily, in the place of each conversation's last one."""

    teacher: Annotated[str, Field(min_length=1)]
    """The model to learn from, named like `base_model`; its tokenizer must be the base model's."""

    max_reply_tokens: Annotated[int, Field(ge=1, le=1_048_576)] = 256
    """Where the teacher's replies are cut."""


class AdversarialSpec(ObjectiveSpec):
    """The adversarial pair (models/objectives/adversarial.py)."""

    name: Literal["adversarial"] = "adversarial"
    """An adversarial pair, from conversations: likelihood to its plateau; then a discriminator learns to tell real
    replies from generated ones; then both learn in turns. `epochs`, `max_steps` and `learning_rate` of `train` are
    the first phase's."""

    warmup_steps: PositiveInt = 200
    """Steps of the discriminator alone; fewer where its loss on held-out pairs is at its plateau."""

    turns: Annotated[int, Field(ge=0, le=1_000_000_000)] = 100
    """Steps in which both learn."""

    learning_rate: Annotated[float, Field(gt=0.0, le=1.0)] = 1e-5
    """The generator's in turns."""

    discriminator_learning_rate: Annotated[float, Field(gt=0.0, le=1.0)] = 1e-4
    """The discriminator's."""

    num_replies: Annotated[int, Field(ge=2, le=256)] = 4
    """Drawn to each history: their scores are compared with each other."""

    gradient: Literal["policy", "gumbel"] = "policy"
    """How the discriminator's scores reach the generator: by the policy gradient; or, with `train.adapter: null`,
    through the replies themselves by straight-through Gumbel-softmax (models/objectives/gumbel.py). That is for small
    models: it takes a number for each token of the vocabulary, of each token of each reply."""

    max_reply_tokens: Annotated[int, Field(ge=1, le=65_536)] = 64
    """Where replies are cut, real ones too."""

    l1_weight: Annotated[float, Field(ge=0.0, le=100.0)] = 0.01
    """Weight of L_L1 beside the policy gradient's L_GAN; a large one acts like a temperature, and a worse one."""

    likelihood_weight: Annotated[float, Field(ge=0.0, le=100.0)] = 0.5
    """Weight of the real replies' negative log-likelihood in turns."""

    kl_weight: Annotated[float, Field(ge=0.0, le=100.0)] = 0.001
    """Weight of the divergence from the generator that likelihood training left."""

    replay_steps: Annotated[int, Field(ge=0, le=100_000)] = 16
    """The discriminator is shown replies of so many earlier steps again."""

    min_accuracy: Share = 0.55
    """A discriminator that tells fewer of the held-out pairs right after its warm-up has nothing to teach: then there
    are no turns."""


class SpinSpec(ObjectiveSpec):
    """Self-play fine-tuning (Chen et al. 2024, arXiv:2401.01335)."""

    reference = "own_replies"

    name: Literal["spin"] = "spin"
    """Self-play fine-tuning (SPIN, Chen et al. 2024, arXiv:2401.01335), from conversations: as `dpo`, with the last
    reply as the chosen one, and one drawn from the base model as the rejected one."""

    beta: Annotated[float, Field(gt=0.0, le=100.0)] = 0.1
    """Scale of the reward, the log-ratio to the base model."""

    max_reply_tokens: Annotated[int, Field(ge=1, le=65_536)] = 64
    """Where replies are cut, real ones too."""


TeacherSpec = DistillSpec | DistillRepliesSpec


AnyObjective = Annotated[
    SftSpec
    | DpoSpec
    | OrpoSpec
    | KtoSpec
    | SimpoSpec
    | DistillSpec
    | DistillRepliesSpec
    | AdversarialSpec
    | SpinSpec,
    Field(discriminator="name"),
]
