"""The names of the scorers, and the key of an item with what each of them expects. Imports nothing."""

KEYS = {
    "facts": "facts",
    "exact": "exact",
    "regex": "regex",
    "json_schema": "json_schema",
    "tool_call": "tool_calls",
    "excludes": "excludes",
    "rouge_l": "reference",
    "chrf": "reference",
    "perplexity": "reply",
}
