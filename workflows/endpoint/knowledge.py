"""The documents of `serve.knowledge`, as passages on the store, where the replicas of all machines find them.

<store>/knowledge/<key>/passages/passages.json      the key is a hash of its content, so nothing in it changes
"""

import hashlib

from models.chat.knowledge import KnowledgeError, Passage
from serve.knowledge.documents import read_documents
from serve.knowledge.retrieval import PASSAGES_FILE, ServedKnowledge, write_passages
from workflows.spec import ServeSpec
from workflows.spec.serve import KnowledgeSpec
from workflows.stage import StageFailed
from workflows.store import Store, without_secrets

_STAGE, _FOLDER = "knowledge", "passages"


def read_knowledge(spec: KnowledgeSpec) -> list[Passage]:
    """The passages of the documents; raises StageFailed for files that cannot be read or hold none."""
    try:
        return read_documents(spec.path, spec.passage_words)
    except KnowledgeError as error:
        raise StageFailed(f"serve.knowledge.path: {without_secrets(spec.path)}: {error}") from None
    except (OSError, ValueError) as error:
        raise StageFailed(f"serve.knowledge.path: cannot read {without_secrets(spec.path)}: {error}") from error


def passages_key(passages: list[Passage]) -> str:
    """A hash of the passages."""
    return hashlib.sha256(write_passages(passages)).hexdigest()[:16]


def served_knowledge(serve: ServeSpec, store: Store) -> ServedKnowledge | None:
    """What replicas need of `serve.knowledge`, with the passages on the store."""
    if (spec := serve.knowledge) is None:
        return None
    passages = read_knowledge(spec)
    key = passages_key(passages)
    store.write_file(store.path(_STAGE, key, _FOLDER, PASSAGES_FILE), write_passages(passages))
    return ServedKnowledge(store.address(_STAGE, key, _FOLDER), spec.passages, spec.min_share)
