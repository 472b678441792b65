"""What a user's file holds, before anything of it is known."""

from collections.abc import Mapping

RawObject = Mapping[str, object]
"""a JSON object of a file: any keys with any values; whoever reads one of them checks what it is"""
