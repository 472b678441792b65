"""Make preference pairs from a file of conversations: the real reply against a reply from another conversation.

    python benchmarks/make_sgd_pairs.py conversations.jsonl.gz pairs.jsonl --count 300

Reads `messages` on each line, plain or .gz. The chosen reply is the one that follows the first `--turns` messages;
the rejected one is from the same place of the conversation half the file away. A model learns from them to answer the
question that was asked.
"""

import argparse
import gzip
import json
from pathlib import Path
from typing import Any


def main() -> None:
    """Write the pairs."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("conversations", type=Path)
    parser.add_argument("pairs", type=Path)
    parser.add_argument("--count", type=int, default=300)
    parser.add_argument("--turns", type=int, default=3, help="messages of a prompt; an odd number ends with the user")
    options = parser.parse_args()
    opener: Any = gzip.open if options.conversations.suffix == ".gz" else open
    usable = []
    with opener(options.conversations, "rt", encoding="utf-8") as lines:
        for line in lines:
            messages = json.loads(line)["messages"]
            if len(messages) > options.turns and messages[options.turns]["role"] == "assistant":
                usable.append(messages[: options.turns + 1])
    stride = max(1, len(usable) // options.count)  # files are sorted by subject: take some of each
    with options.pairs.open("w", encoding="utf-8") as stream:
        for index in range(0, stride * options.count, stride):
            *prompt, chosen = usable[index % len(usable)]
            rejected = usable[(index + len(usable) // 2) % len(usable)][-1]
            if chosen["content"] != rejected["content"]:
                record = {"prompt": prompt, "chosen": chosen["content"], "rejected": rejected["content"]}
                stream.write(json.dumps(record, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main()
