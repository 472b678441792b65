"""The objectives by their names in a pipeline file.

objective = OBJECTIVES["dpo"](beta=0.2)
batch = objective.batch(rows)
loss_sum, figures = objective.loss_sum(model, batch)
"""

from collections.abc import Callable

from models.objectives.adversarial import Generate
from models.objectives.base import Objective
from models.objectives.distill import Distill
from models.objectives.preference import Dpo, Kto, Orpo, Simpo
from models.objectives.sft import Sft

OBJECTIVES: dict[str, Callable[..., Objective]] = {
    "sft": Sft,
    "dpo": Dpo,
    "orpo": Orpo,
    "kto": Kto,
    "simpo": Simpo,
    "distill": Distill,
    "distill_replies": Sft,
    "adversarial": Generate,
    "spin": Dpo,
}
"""by the name in a pipeline file; each takes its section's fields as keyword arguments"""
