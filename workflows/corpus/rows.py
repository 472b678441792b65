"""A row of the corpus, as `prepare` writes it and workers read it."""

from typing import TypedDict


class CorpusRow(TypedDict, total=False):
    """A conversation in tokens; a reader has the columns that it asked for, with source and line."""

    source: int
    """place of the file among the sources, from 0"""
    line: int
    input_ids: list[int]
    supervised: list[bool]
    """which tokens are learned"""
    other_input_ids: list[int] | None
    """of a pair the prompt with its rejected reply; of a judged reply with a reply to another prompt; else None"""
    other_supervised: list[bool] | None
    piece_lengths: list[int] | None
    """of a tree (models/trees.py), as the one after it"""
    piece_parents: list[int] | None
    desirable: bool | None
    """of a judged reply"""
    num_tokens: int
    num_targets: int
    truncated: bool
    messages: str
    """the conversation, as JSON"""
    tools: str | None
    """as JSON"""
    split: str
    reason: str
    """why a line is set aside"""
    reference_log_probability: float
    """of its reply by the base model, in nats; as the one after it a reference value, from the stage `reference`"""
    other_reference_log_probability: float
    teacher_tokens: list[int]
    """at every supervised position the teacher's most likely ones, as the one after it a reference value"""
    teacher_log_probabilities: list[float]
