"""The base model's tokenizer with the changes of `data`: chat template, its variables and date, new tokens."""

import functools
from typing import Any

from models.base.load import load_tokenizer, resolve
from models.chat import DEFAULT_CHAT_TEMPLATE, ChatTemplateError
from models.chat.settings import change_template, writes_today
from models.files import open_uri, read_file
from workflows.spec import DataSpec, PipelineSpec


def chat_tokenizer(spec: PipelineSpec) -> Any:
    """The tokenizer for every stage before the release; raises ChatTemplateError with the field's name."""
    return _tokenizer(spec.base_model, spec.data.model_dump_json())


@functools.lru_cache(maxsize=2)
def _tokenizer(base_model: str, section: str) -> Any:
    """Cached, so that a process loads it once for all its blocks and trainings."""
    data = DataSpec.model_validate_json(section)
    tokenizer = load_tokenizer(resolve(base_model))
    if data.new_tokens:
        from models.base.new_tokens import add_new_tokens

        add_new_tokens(tokenizer, data.new_tokens)
    change_template(
        tokenizer,
        template=None if data.chat_template is None else read_template(data.chat_template),
        variables=data.chat_template_kwargs,
        day=data.template_date,
        allows_control_tokens=data.control_tokens == "allow",
    )
    return tokenizer


def read_template(uri: str) -> str:
    """Read a template file from any filesystem."""
    try:
        return read_file(*open_uri(uri)).decode()
    except (OSError, ValueError) as error:
        where = f"data.chat_template: cannot read {uri}: {error}"
        raise ChatTemplateError(f"{where}; give a file of Jinja text") from error


def template_notes(spec: PipelineSpec, tokenizer: Any) -> list[str]:
    """Notes on properties of the chat template that a user may not expect."""
    notes = []
    if str(tokenizer.chat_template).endswith(DEFAULT_CHAT_TEMPLATE):
        notes.append(
            f"{spec.base_model} has no chat template; conversations get speaker names, as in "
            "'User: ...', 'Assistant: ...'; to use another one, set data.chat_template"
        )
    if writes_today(tokenizer) and spec.data.template_date is None:
        notes.append(
            "the chat template writes the current date: training uses today's, the endpoint that of each day; "
            "set data.template_date to fix one for both"
        )
    return notes
