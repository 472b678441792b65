"""Documents of a folder, cut into passages.

passages = read_documents("rules/", most_words=120)
"""

import itertools
import json
import re
from collections.abc import Iterator
from typing import Any

import pyarrow as pa
import pyarrow.fs

from models.chat.knowledge import KnowledgeError, Passage, passage_of, passages_of
from models.files import open_uri, read_file
from models.text.shingles import word_count

SUFFIXES = (".txt", ".md", ".jsonl")

# Where to cut a text that is too long, the best place first: paragraphs, lines, sentences, words, and characters for
# scripts without spaces. A cut is after what matches.
_CUTS = [re.compile(cut) for cut in (r"\n\s*\n", r"\n", r"(?<=[.!?;])\s+|(?<=[。！？；])", r"\s+", r"(?<=.)")]
_HEADING = re.compile(r"\s*#{1,6}\s")


def read_documents(path: str, most_words: int) -> list[Passage]:
    """The passages, of at most `most_words` words, of all documents in a folder, or of a file; a path or a URI.

    A .txt or .md file is a document, named by its path in the folder. Each line of a .jsonl file is a passage as in
    `data.knowledge`, as JSON; without a name, it has the file's. Other and hidden files are left out. Raises
    KnowledgeError with the file, and OSError.
    """
    filesystem, root = open_uri(path, patient=False)
    passages: dict[Passage, None] = {}
    for file, name in _files(filesystem, root):
        content = read_file(filesystem, file)
        try:
            text = content.decode().removeprefix("\ufeff")
        except UnicodeDecodeError as error:
            raise KnowledgeError(f"{name} is not UTF-8: {error}") from None
        for document in _documents(text, name):
            passages |= dict.fromkeys(_cut(document, most_words))
    if not passages:
        raise KnowledgeError(f"there is no {', '.join(SUFFIXES[:-1])} or {SUFFIXES[-1]} file with a text in it")
    return list(passages)


def _files(filesystem: Any, root: str) -> Iterator[tuple[str, str]]:
    """The documents at a path, each with its name."""
    root = root.rstrip("/")
    [info] = filesystem.get_file_info([root])
    if info.type == pa.fs.FileType.File:
        yield root, info.base_name
        return
    found = filesystem.get_file_info(pa.fs.FileSelector(root, recursive=True))
    for each in sorted(found, key=lambda each: str(each.path)):
        name = each.path[len(root) :].lstrip("/")
        is_hidden = any(part.startswith(".") for part in name.split("/"))
        if each.type == pa.fs.FileType.File and name.lower().endswith(SUFFIXES) and not is_hidden:
            yield each.path, name


def _documents(text: str, name: str) -> list[Passage]:
    if not name.lower().endswith(".jsonl"):
        return [Passage(name, text)]
    entries = []
    for number, line in enumerate(text.split("\n"), start=1):
        if line.strip():
            try:
                entries.append(json.loads(line))
            except (ValueError, RecursionError) as error:
                raise KnowledgeError(f"{name}:{number} is not JSON: {error}") from None
            passage_of(entries[-1], f"{name}:{number}")  # an error names the line
    return [Passage(each.name or name, each.text) for each in passages_of(entries, name)]


def _cut(document: Passage, most_words: int) -> Iterator[Passage]:
    """A document in passages; a heading begins a new one."""
    for section in _joined(_paragraphs(document.text), most_words):
        for text in _pieces(section, most_words):
            if word_count(text):
                yield Passage(document.name, text.strip())


def _paragraphs(text: str) -> list[str]:
    """A text cut at empty lines and before headings; the pieces joined are the text."""
    return [piece for part in _split(text, _CUTS[0]) for piece in re.split(r"(?m)^(?=\s*#{1,6}\s)", part) if piece]


def _pieces(text: str, most_words: int, cuts: list[re.Pattern[str]] = _CUTS) -> Iterator[str]:
    """A text in pieces of at most `most_words` words, each as long as its cuts allow."""
    if word_count(text) <= most_words or not cuts:
        yield text
        return
    smaller = [piece for part in _split(text, cuts[0]) for piece in _pieces(part, most_words, cuts[1:])]
    yield from _joined(smaller, most_words)


def _split(text: str, cut: re.Pattern[str]) -> list[str]:
    places = [0, *(found.end() for found in cut.finditer(text)), len(text)]
    return [text[begin:end] for begin, end in itertools.pairwise(places) if begin < end]


def _joined(pieces: list[str], most_words: int) -> Iterator[str]:
    """Neighbours together while they have at most `most_words` words, up to the next heading below a text."""
    text, words = "", 0
    for piece in pieces:
        count = word_count(piece)
        if text and (words + count > most_words or (_HEADING.match(piece) and not _is_headings(text))):
            yield text
            text, words = "", 0
        text, words = text + piece, words + count
    if text:
        yield text


def _is_headings(text: str) -> bool:
    return all(_HEADING.match(line) for line in text.split("\n") if line.strip())
