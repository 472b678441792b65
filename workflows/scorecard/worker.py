"""A worker that computes the losses of conversations under the compared models, and lets each answer prompts."""

import contextlib
import functools
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypedDict

import pyarrow as pa

from models.base.load import identity
from serve.knowledge.retrieval import ServedKnowledge
from workflows.corpus.rows import CorpusRow
from workflows.endpoint.knowledge import served_knowledge
from workflows.lm_eval.requests import EndpointRequest
from workflows.record import JsonObject
from workflows.stage import Context
from workflows.store import Store, content_key
from workflows.suites.answering import Answer, AnsweringModel, Asked, engine_of
from workflows.suites.reply_cache import ReplyCache
from workflows.suites.suite import Turn

BASE, TUNED, SERVICE = "base", "tuned", "service"
"""the compared models: the base model, the checkpoint, and the release in service"""

_SCORED_AT_ONCE = 16

SCORED_SCHEMA = pa.schema(
    [
        ("question", pa.int32()),  # -1 for a conversation of the corpus
        ("model", pa.string()),  # the one that answers; null for a conversation whose loss is computed
        ("turns", pa.string()),  # of a prompt or of a given reply, as JSON
        ("max_new_tokens", pa.int32()),
        ("request", pa.string()),  # of lm-eval, as JSON, in place of turns
        ("input_ids", pa.list_(pa.int32())),
        ("supervised", pa.list_(pa.bool_())),
        ("piece_lengths", pa.list_(pa.int32())),
        ("piece_parents", pa.list_(pa.int32())),
        ("other_input_ids", pa.list_(pa.int32())),  # of a pair, with its rejected reply
        ("other_supervised", pa.list_(pa.bool_())),
        ("desirable", pa.bool_()),
        ("source", pa.int32()),
        ("line", pa.int64()),
        ("language", pa.string()),
        ("group", pa.string()),
    ]
)


class ScoredRow(CorpusRow, total=False):
    """A conversation to score, or a prompt to reply to."""

    question: int
    """index among the prompts and given replies; -1 for a conversation of the corpus"""
    model: str | None
    turns: str | None
    max_new_tokens: int | None
    request: str | None


class ScoreRow(TypedDict, total=False):
    """A worker's result for one conversation, one given reply, or one model's answers to one prompt."""

    question: int
    """as above"""
    losses: dict[str, float]
    """by model: -log p of the targets, in nats, summed"""
    targets: int
    source: int
    line: int
    language: str | None
    group: str | None
    margin: float | None
    """of a pair, its reward margin"""
    model: str | None
    answers: list[JsonObject]
    """for each turn, the message or `{"error": ...}`"""
    request: str
    """the key of a request of lm-eval, with its answer"""
    answer: JsonObject


@dataclass(frozen=True)
class ScoringSettings:
    """The configuration of a worker."""

    store: str
    checkpoint: str
    """the key of `train`'s artifact"""
    base_model: str
    base_identity: str
    precision: str
    threads: float
    gpus: float
    in_bulk: bool
    """whether there are so many prompts that a faster engine is worth its conversion"""
    service: str | None = None
    """the key of the release in service"""
    knowledge: ServedKnowledge | None = None
    """the endpoint's, which every model gets"""


def scoring_settings(context: Context, *, in_bulk: bool, service: str | None = None) -> ScoringSettings:
    """Of the workers of `evaluate`, for the model that `train` has made."""
    spec, evaluate = context.spec, context.spec.evaluate
    return ScoringSettings(
        store=context.store.uri,
        checkpoint=context.inputs["train"].key,
        base_model=spec.base_model,
        base_identity=identity(spec.base_model),
        precision=spec.train.precision,
        threads=evaluate.cpus_per_worker,
        gpus=evaluate.gpus_per_worker,
        in_bulk=in_bulk,
        service=service,
        knowledge=served_knowledge(spec.serve, context.store),
    )


class ScoringWorker:
    """A worker that has one kind of work in memory at a time: all models for losses, or one that answers."""

    def __init__(self, settings: ScoringSettings, board: Any) -> None:
        import torch

        from models.base.load import resolve

        torch.set_num_threads(max(1, int(settings.threads)))
        self._settings, self._board = settings, board
        self._store = Store(settings.store)
        self._device = "cuda" if settings.gpus else "cpu"
        self._base = resolve(settings.base_model)
        self._checkpoint = self._store.local_folder("train", settings.checkpoint, "model")
        self._tokenizer: Any = None
        self._compared: Any = None
        self._answering: tuple[str, AnsweringModel, ReplyCache] | None = None
        self._open = contextlib.ExitStack()

    def __call__(self, batch: pa.Table) -> pa.Table:
        """The results, a row each; those whose loss has nothing to count are left out."""
        rows: list[ScoredRow] = batch.to_pylist()
        scored = [row for row in rows if row["model"] is None and row["desirable"] is not False]
        of_corpus = [row for row in scored if row["question"] < 0]
        given = [self._encoded(row) for row in scored if row["question"] >= 0]
        to_answer = [row for row in rows if row["model"] is not None]
        self._board.add.remote(done=len(rows) - len(to_answer) - len(scored))  # what has no loss to compute
        results: list[ScoreRow] = []
        for kind in (of_corpus, given):
            for start in range(0, len(kind), _SCORED_AT_ONCE):
                some = kind[start : start + _SCORED_AT_ONCE]
                results += self._score(some)
                self._board.add.remote(done=len(some))
        for model in dict.fromkeys(str(row["model"]) for row in to_answer):
            results += self._answers(model, [row for row in to_answer if row["model"] == model])
        return pa.table({"result": pa.array([json.dumps(result) for result in results], pa.string())})

    def _answers(self, model: str, rows: list[ScoredRow]) -> list[ScoreRow]:
        answering, cache = self.answering_model(model)
        prompts = [row for row in rows if not row["request"]]
        asked = [Asked(_turns(row), row["max_new_tokens"] or 1) for row in prompts]
        requests = [EndpointRequest(**json.loads(row["request"])) for row in rows if row["request"]]
        try:
            answers = answering.converse(asked, self._one_more)
            found = answering.ask(requests, self._one_more)
        finally:
            cache.save()
        results: list[ScoreRow] = [
            {"question": row["question"], "model": model, "answers": [_answer(each) for each in turns]}
            for row, turns in zip(prompts, answers, strict=True)
        ]
        return results + [
            {"question": -1, "model": model, "request": request.key, "answer": answer}
            for request, answer in zip(requests, found, strict=True)
        ]

    def _one_more(self) -> None:
        self._board.add.remote(done=1)

    def answering_model(self, model: str) -> tuple[AnsweringModel, ReplyCache]:
        """The model's engine, the only one in memory, and its replies so far, to save after use."""
        from models.base.load import load_tokenizer

        if self._answering is None or self._answering[0] != model:
            self._compared = self._answering = None
            self._open.close()
            settings = self._settings
            tokenizer = self._service_folder() if model == SERVICE else self._checkpoint
            cache = ReplyCache(self._store, self._model_key(model, tokenizer))
            plain, threads = functools.partial(self._plain, model), max(1, int(settings.threads))
            answering = AnsweringModel(
                engine_of(plain, threads, self._device, settings.in_bulk),
                functools.partial(load_tokenizer, tokenizer),
                cache,
                settings.knowledge.load() if settings.knowledge else None,
            )
            self._answering = model, self._open.enter_context(answering), cache
        return self._answering[1:]

    def _plain(self, model: str, target: Path) -> Path:
        """The folder that an engine loads, perhaps written to `target`."""
        from models.base.plain import plain_base, plain_checkpoint
        from models.base.precision import dtype_of

        dtype = dtype_of("fp32" if self._device == "cpu" else "auto", self._device)
        if model == SERVICE:
            return self._service_folder()
        if model == BASE:
            return plain_base(self._base, self._checkpoint, target, dtype)
        return plain_checkpoint(self._base, self._checkpoint, target, dtype)

    def _model_key(self, model: str, tokenizer: Path) -> str:
        """The key of the model's replies: its weights, the tokenizer and chat template, and how it computes."""
        settings = self._settings
        weights = {BASE: settings.base_identity, TUNED: settings.checkpoint, SERVICE: settings.service}[model]
        return content_key({"model": weights, "device": self._device, "tokenizer": _token_files(tokenizer)})

    def _service_folder(self) -> Path:
        assert self._settings.service is not None
        return self._store.local_folder("optimize", self._settings.service, "model")

    def _encoded(self, row: ScoredRow) -> ScoredRow:
        """A given reply after its prompt, as tokens of which the reply's are targets."""
        from models.base.load import load_tokenizer
        from models.chat import encode_conversation

        if self._tokenizer is None:
            self._tokenizer = load_tokenizer(self._checkpoint)
        [turn] = _turns(row)
        encoded = encode_conversation(self._tokenizer, turn.messages, True, turn.tools)
        row = {**row, "input_ids": encoded.input_ids, "supervised": encoded.supervised}
        return {**row, "piece_lengths": encoded.piece_lengths, "piece_parents": encoded.piece_parents}

    def _score(self, rows: list[ScoredRow]) -> list[ScoreRow]:
        """The losses of a few conversations under all models, in one forward pass each."""
        from models.objectives.preference import pack_both
        from models.packing import pack_trees
        from models.trees import tree_of

        if not rows:
            return []
        models = self._compared_models()
        if rows[0]["question"] < 0 and rows[0]["desirable"] is None and rows[0]["other_input_ids"] is not None:
            batch = pack_both(rows)
            both = {name: sums.view(-1, 2) for name, sums in models.log_probabilities(batch).items()}
            log_p = {name: sums[:, 0] for name, sums in both.items()}
            ratios = both[TUNED] - both[BASE]
            margins = (ratios[:, 0] - ratios[:, 1]).tolist()
            targets = batch.target_sequences.bincount(minlength=2 * len(rows))[::2].tolist()
        else:
            batch = pack_trees([tree_of(row) for row in rows])
            log_p = models.log_probabilities(batch)
            margins = [None] * len(rows)
            targets = batch.target_sequences.bincount(minlength=len(rows)).tolist()
        return [
            {
                "question": row["question"],
                "losses": {name: -float(sums[place]) for name, sums in log_p.items()},
                "targets": targets[place],
                "source": row["source"],
                "line": row["line"],
                "language": row["language"],
                "group": row["group"],
                "margin": margins[place],
            }
            for place, row in enumerate(rows)
            if targets[place]
        ]

    def _compared_models(self) -> Any:
        """All models, with nothing else in memory."""
        if self._compared is None:
            from models.base.precision import dtype_of
            from models.measures.compared_models import ComparedModels

            self._open.close()
            self._answering = None
            dtype = dtype_of(self._settings.precision, self._device)
            service = self._service_folder() if self._settings.service else None
            if service is not None and not reads_the_same(service, self._checkpoint):
                service = None
            self._compared = ComparedModels(self._base, self._checkpoint, dtype, self._device, service)
        return self._compared


def reads_the_same(one: Path, other: Path) -> bool:
    """Whether two models' folders have the same tokenizer and chat template."""
    return _token_files(one) == _token_files(other)


def _token_files(folder: Path) -> dict[str, str]:
    """What decides a model's tokens."""
    files = ("tokenizer.json", "chat_template.jinja")
    return {name: (folder / name).read_text() for name in files if (folder / name).is_file()}


def _turns(row: ScoredRow) -> list[Turn]:
    return [
        Turn(tuple(turn["messages"]), turn["tools"], brings_knowledge=turn["brings_knowledge"])
        for turn in json.loads(row["turns"] or "[]")
    ]


def _answer(answer: Answer) -> JsonObject:
    return {"error": answer.error} if answer.message is None else {**answer.message}
