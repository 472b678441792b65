"""An adversarial pair's second player, in the artifacts of all stages."""

from pathlib import Path

from models.base import resolve
from workflows.spec import PipelineSpec

DISCRIMINATOR = "discriminator"
"""its folder in the artifacts of `train` and `optimize`, and in a new model's, if it begins otherwise than that"""

CONTINUED = "continued"
"""the folder of what it is compared to, a generator by likelihood alone, in the artifact of `train`"""

SHIPPED = "shipped"
"""what the figures of a release with a discriminator say of it"""


def discriminator_base(spec: PipelineSpec) -> Path:
    """The folder that a discriminator begins with: the base model, or what `new_model` says of it."""
    base = resolve(spec.base_model)
    own = base / DISCRIMINATOR
    return own if own.is_dir() else base
