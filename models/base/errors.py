"""An error in one line."""


def describe_error(error: BaseException) -> str:
    """The class of an error and the first line of its text."""
    return f"{type(error).__name__}: {next(iter(str(error).strip().splitlines()), '')}"
