"""The error for a line of the data."""

from models.errors import RayconteurError


class UnusableLine(RayconteurError):
    """A line that has no usable conversation; `prepare` sets it aside with this reason."""
