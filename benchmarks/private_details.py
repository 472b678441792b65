"""What models.text.private finds in lines full of private details and of things that look like them.

    python benchmarks/private_details.py [--corpus FILE.jsonl.gz ...] [--write FILE]

The lines are in private_details.txt beside this file, each with its details marked, written by hand: all kinds in ten
languages, and traps (order numbers, dates, prices, versions, ISBNs, street addresses, words that look like names).
Details that nothing in the line gives away, such as a name in mid-sentence, are in there too. The first 553 lines
shaped the recognisers; the last 152 were written when those were done. A detail is found if exactly its characters
are. `--write` writes the lines without marks; `--corpus` measures the speed on conversations and counts what is found
there. Prints a Markdown table and what is missed or invented, and one JSON object as the last line.
"""

import argparse
import collections
import gzip
import json
import re
import time
from pathlib import Path
from typing import Any

from models.text.private import KINDS, Detail, PrivateDetails

LINES = Path(__file__).with_suffix(".txt")
OWN = {"ticket": r"TCK-\d{6}", "employee": r"\bE\d{7}\b"}
_MARK = re.compile(r"\{(" + "|".join([*KINDS, *OWN]) + r"):([^{}]*)\}")


def unmarked(line: str) -> tuple[str, set[tuple[str, int, int]]]:
    """A line without its marks, and its details: kind, start, end."""
    text, details, end = "", set(), 0
    for mark in _MARK.finditer(line):
        text += line[end : mark.start()]
        details.add((mark[1], len(text), len(text) + len(mark[2])))
        text += mark[2]
        end = mark.end()
    return text + line[end:], details


def lines() -> list[tuple[str, set[tuple[str, int, int]]]]:
    written = LINES.read_text(encoding="utf-8").splitlines()
    return [unmarked(line.replace(r"\n", "\n")) for line in written if line and not line.startswith("# ")]


def measured() -> dict[str, Any]:
    """Recall and precision of each kind, printed with what is missed and invented."""
    finder = PrivateDetails(OWN)
    there: collections.Counter[str] = collections.Counter()
    found: collections.Counter[str] = collections.Counter()
    right: collections.Counter[str] = collections.Counter()
    missed, invented = [], []
    for text, gold in lines():
        own = {(each.kind, each.start, each.end) for each in finder.find(text)}
        there.update(kind for kind, *_ in gold)
        found.update(kind for kind, *_ in own)
        right.update(kind for kind, *_ in own & gold)
        missed += [(kind, text[start:end], text) for kind, start, end in sorted(gold - own)]
        invented += [(kind, text[start:end], text) for kind, start, end in sorted(own - gold)]
    print("| kind | in the file | found | recall | precision |\n| --- | ---: | ---: | ---: | ---: |")
    result = {}
    for kind in [*KINDS, *OWN]:
        recall = right[kind] / max(1, there[kind])
        precision = right[kind] / max(1, found[kind])
        result[kind] = {"there": there[kind], "found": found[kind], "recall": recall, "precision": precision}
        print(f"| {kind} | {there[kind]} | {found[kind]} | {recall:.3f} | {precision:.3f} |")
    for title, which in (("Missed", missed), ("Found wrongly", invented)):
        print(f"\n{title}: {len(which)}")
        for kind, detail, text in which:
            print(f"- {kind} `{detail}` in {text!r}")
    return {"lines": len(lines()), "kinds": result, "missed": len(missed), "invented": len(invented)}


def on_corpus(file: Path, samples: int) -> dict[str, Any]:
    """Speed on a file of conversations, and what is found in it."""
    with gzip.open(file, "rt", encoding="utf-8") as stream:
        rows = [[turn["content"] for turn in json.loads(line)["messages"]] for line in stream]
    size = sum(len(text.encode()) for texts in rows for text in texts) / 1e6
    finder = PrivateDetails()
    begin = time.process_time()
    found = [finder.find_in_conversation(texts) for texts in rows]
    seconds = time.process_time() - begin
    counts: collections.Counter[str] = collections.Counter()
    shown: dict[str, list[str]] = collections.defaultdict(list)
    for texts, lists in zip(rows, found, strict=True):
        for text, details in zip(texts, lists, strict=True):
            for each in details:
                counts[each.kind] += 1
                shown[each.kind].append(_shown(text, each))
    print(f"\n{file.name}: {size:.1f} MB in {seconds:.1f} s of a core, {size / seconds:.1f} MB/s; {dict(counts)}")
    for kind, all_shown in shown.items():
        for each in all_shown[:: max(1, len(all_shown) // max(1, samples))][:samples]:
            print(f"- {kind} {each}")
    return {"MB": size, "MB/s": size / seconds, "found": counts}


def _shown(text: str, detail: Detail) -> str:
    begin, end = text[max(0, detail.start - 40) : detail.start], text[detail.end : detail.end + 20]
    return f"{begin!r} [{text[detail.start : detail.end]}] {end!r}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--corpus", type=Path, nargs="*", default=[])
    parser.add_argument("--samples", type=int, default=0, help="findings of each kind to print from each corpus")
    parser.add_argument("--write", type=Path)
    arguments = parser.parse_args()
    if arguments.write:
        arguments.write.write_text("".join(f"{json.dumps(text, ensure_ascii=False)}\n" for text, _ in lines()))
    result = measured()
    result["corpora"] = {file.name: on_corpus(file, arguments.samples) for file in arguments.corpus}
    print(json.dumps(result))


if __name__ == "__main__":
    main()
