"""The section train.objective: the training objectives and their fields."""

from collections.abc import Mapping
from typing import Annotated, ClassVar, Literal

from pydantic import Field

from workflows.spec.section import PositiveInt, Section, Share


class ObjectiveSpec(Section):
    """A training objective. The class variables are the data it needs, what is computed before training, and what a
    search can compare its trainings by.
    """

    name: str

    examples: ClassVar[Literal["conversations", "pairs", "judged"]] = "conversations"
    """the kind of example on each line of the data"""

    reference: ClassVar[Literal["none", "log_probabilities", "top_tokens", "replies", "own_replies"]] = "none"
    """what the stage `reference` computes: nothing; the log-probabilities of the replies under the base model; a
    teacher's most likely tokens; a teacher's replies; or replies of the base model beside the real ones"""

    metrics: ClassVar[Mapping[str, tuple[str, ...]]] = {"held_out_loss": ()}
    """the held-out figures of its trainings, each with the fields of `train` that enter its value: two models can be
    compared by it only if they have been trained with the same values of these"""


class SftSpec(ObjectiveSpec):
    """Supervised fine-tuning."""

    name: Literal["sft"] = "sft"
    """Supervised fine-tuning: the cross-entropy of every reply."""


class DpoSpec(ObjectiveSpec):
    """Direct preference optimization (Rafailov et al. 2023, arXiv:2305.18290)."""

    examples = "pairs"
    reference = "log_probabilities"
    metrics = {  # noqa: RUF012 (a ClassVar of the base)
        "held_out_loss": ("objective.beta", "objective.label_smoothing"),
        "held_out_accuracy": (),
        "held_out_margin": ("objective.beta",),
    }

    name: Literal["dpo"] = "dpo"
    """Direct preference optimization (Rafailov et al. 2023, arXiv:2305.18290), on preference pairs."""

    beta: Annotated[float, Field(gt=0.0, le=100.0)] = 0.1
    """Scale of the reward, which is the log-ratio to the base model; a larger value keeps the model closer to its
    base."""

    label_smoothing: Annotated[float, Field(ge=0.0, lt=0.5)] = 0.0
    """Probability that the two replies of a pair are swapped (conservative DPO)."""


class OrpoSpec(ObjectiveSpec):
    """Odds ratio preference optimization (Hong et al. 2024, arXiv:2403.07691)."""

    examples = "pairs"
    metrics = {  # noqa: RUF012 (a ClassVar of the base)
        "held_out_loss": ("objective.weight",),
        "held_out_accuracy": (),
        "held_out_margin": (),
    }

    name: Literal["orpo"] = "orpo"
    """Odds ratio preference optimization (Hong et al. 2024, arXiv:2403.07691), on preference pairs, without a
    reference model."""

    weight: Annotated[float, Field(ge=0.0, le=100.0)] = 0.1
    """Weight of the odds-ratio loss relative to the chosen reply's cross-entropy (the paper's lambda)."""


class KtoSpec(ObjectiveSpec):
    """Kahneman-Tversky optimization (Ethayarajh et al. 2024, arXiv:2402.01306)."""

    examples = "judged"
    reference = "log_probabilities"
    # The reference point is the mean over a micro-batch, so its size enters too.
    metrics = {  # noqa: RUF012 (a ClassVar of the base)
        "held_out_loss": (
            "objective.beta", "objective.desirable_weight", "objective.undesirable_weight", "batch_tokens"
        ),
        "held_out_accuracy": ("batch_tokens",),
        "held_out_margin": ("objective.beta", "batch_tokens"),
    }  # fmt: skip

    name: Literal["kto"] = "kto"
    """Kahneman-Tversky optimization (Ethayarajh et al. 2024, arXiv:2402.01306), on single labelled replies."""

    beta: Annotated[float, Field(gt=0.0, le=100.0)] = 0.1
    """Scale of the reward, which is the log-ratio to the base model."""

    desirable_weight: Annotated[float, Field(ge=0.0, le=100.0)] = 1.0
    """Loss weight of desirable replies."""

    undesirable_weight: Annotated[float, Field(ge=0.0, le=100.0)] = 1.0
    """Loss weight of undesirable replies; weight times count should be about equal on both sides."""


class SimpoSpec(ObjectiveSpec):
    """Simple preference optimization (Meng et al. 2024, arXiv:2405.14734)."""

    examples = "pairs"
    metrics = {  # noqa: RUF012 (a ClassVar of the base)
        "held_out_loss": ("objective.beta", "objective.gamma"),
        "held_out_accuracy": (),
        "held_out_margin": ("objective.beta",),
    }

    name: Literal["simpo"] = "simpo"
    """Simple preference optimization (Meng et al. 2024, arXiv:2405.14734), on preference pairs, without a reference
    model."""

    beta: Annotated[float, Field(gt=0.0, le=100.0)] = 2.0
    """Scale of the reward, which is the mean log-probability of a reply's tokens."""

    gamma: Annotated[float, Field(ge=0.0, le=100.0)] = 1.0
    """Target margin between the rewards of the chosen and the rejected reply."""


class DistillSpec(ObjectiveSpec):
    """Knowledge distillation (Hinton et al. 2015, arXiv:1503.02531)."""

    reference = "top_tokens"
    metrics = {  # noqa: RUF012 (a ClassVar of the base)
        "held_out_loss": ("objective.temperature", "objective.plain_share"),
        "held_out_plain_loss": (),
        "held_out_divergence": ("objective.temperature",),
    }

    name: Literal["distill"] = "distill"
    """Knowledge distillation (Hinton et al. 2015, arXiv:1503.02531) from a teacher model, on conversations."""

    teacher: Annotated[str, Field(min_length=1)]
    """The model to learn from, named like `base_model`; it must have the base model's tokenizer."""

    top_k: Annotated[int, Field(ge=1, le=4096)] = 32
    """Number of the teacher's most likely tokens to store at each supervised position; the rest count as one
    outcome."""

    temperature: Annotated[float, Field(ge=0.1, le=100.0)] = 1.0
    """Softmax temperature of both models' distributions before they are compared."""

    plain_share: Share = 0.5
    """Share of the plain cross-entropy in the loss; the rest is the divergence from the teacher."""


class DistillRepliesSpec(ObjectiveSpec):
    """Sequence-level distillation (Kim and Rush 2016, arXiv:1606.07947)."""

    reference = "replies"

    name: Literal["distill_replies"] = "distill_replies"
    """Sequence-level distillation (Kim and Rush 2016, arXiv:1606.07947): the cross-entropy of a reply that the
    teacher generates greedily in place of each conversation's last one."""

    teacher: Annotated[str, Field(min_length=1)]
    """The model to learn from, named like `base_model`; it must have the base model's tokenizer."""

    max_reply_tokens: Annotated[int, Field(ge=1, le=1_048_576)] = 256
    """Maximum tokens of a teacher's reply; longer replies are cut."""


class AdversarialSpec(ObjectiveSpec):
    """Adversarial training of a generator and a discriminator (models/objectives/adversarial.py)."""

    name: Literal["adversarial"] = "adversarial"
    """Adversarial training on conversations, in three phases: likelihood training until it plateaus; then a
    discriminator learns to tell real replies from generated ones; then both learn in turns. `epochs`, `max_steps` and
    `learning_rate` of `train` apply to the first phase."""

    warmup_steps: PositiveInt = 200
    """Maximum steps that train the discriminator alone; fewer if its loss on held-out pairs plateaus earlier."""

    turns: Annotated[int, Field(ge=0, le=1_000_000_000)] = 100
    """Steps that train both models."""

    learning_rate: Annotated[float, Field(gt=0.0, le=1.0)] = 1e-5
    """The generator's learning rate in the turns."""

    discriminator_learning_rate: Annotated[float, Field(gt=0.0, le=1.0)] = 1e-4
    """The discriminator's learning rate."""

    num_replies: Annotated[int, Field(ge=2, le=256)] = 4
    """Replies drawn for each history; their scores are compared with each other."""

    gradient: Literal["policy", "gumbel"] = "policy"
    """How the discriminator's scores reach the generator: `policy` uses the policy gradient; `gumbel`, which needs
    `train.adapter: null`, differentiates through the replies with straight-through Gumbel-softmax
    (models/objectives/gumbel.py). `gumbel` is for small models: it stores a number for each token of the vocabulary
    at each token of each reply."""

    max_reply_tokens: Annotated[int, Field(ge=1, le=65_536)] = 64
    """Maximum tokens of a reply; longer replies are cut, real ones too."""

    l1_weight: Annotated[float, Field(ge=0.0, le=100.0)] = 0.01
    """Weight of L_L1 relative to the policy gradient's L_GAN; a large weight acts like a temperature, and a worse
    one."""

    likelihood_weight: Annotated[float, Field(ge=0.0, le=100.0)] = 0.5
    """Weight of the real replies' negative log-likelihood in the turns."""

    kl_weight: Annotated[float, Field(ge=0.0, le=100.0)] = 0.001
    """Weight of the KL divergence from the generator as likelihood training left it."""

    replay_steps: Annotated[int, Field(ge=0, le=100_000)] = 16
    """Number of earlier steps whose replies the discriminator trains on again."""

    min_accuracy: Share = 0.55
    """Minimum accuracy of the discriminator on held-out pairs after its warm-up; below it, the turns are skipped."""


class SpinSpec(ObjectiveSpec):
    """Self-play fine-tuning (Chen et al. 2024, arXiv:2401.01335)."""

    reference = "own_replies"
    metrics = {  # noqa: RUF012 (a ClassVar of the base)
        "held_out_loss": ("objective.beta",),
        "held_out_accuracy": (),
        "held_out_margin": ("objective.beta",),
    }

    name: Literal["spin"] = "spin"
    """Self-play fine-tuning (SPIN, Chen et al. 2024, arXiv:2401.01335), on conversations: like `dpo`, with the last
    reply as the chosen one and a reply drawn from the base model as the rejected one."""

    beta: Annotated[float, Field(gt=0.0, le=100.0)] = 0.1
    """Scale of the reward, which is the log-ratio to the base model."""

    max_reply_tokens: Annotated[int, Field(ge=1, le=65_536)] = 64
    """Maximum tokens of a reply; longer replies are cut, real ones too."""


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
