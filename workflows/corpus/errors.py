"""What is wrong with a line of the data."""

from models.errors import RayconteurError


class UnusableLine(RayconteurError):
    """A line that no conversation can be made of; `prepare` sets it aside with this reason."""
