"""evaluate: compares the tuned with the base model on held-out conversations and questions, with Ray Data.

    rayconteur evaluate PIPELINE

Writes `scorecard.json` to the store: losses on the same tokens, replies side by side, facts, and the verdict. For
preference pairs, the losses are those of the chosen replies; `preference_accuracy` is the share of pairs with a
reward margin above 0, and `reward_margin` its mean: how much more training has raised the log-probability of the
chosen reply than that of the rejected one, in nats. For labelled replies (KTO), only the desirable ones are scored.
"""

import json
from collections.abc import Sequence
from dataclasses import replace

import pyarrow as pa
import ray
import ray.data

from workflows.cluster.board import watching
from workflows.cluster.workers import check_fits, worker_environment
from workflows.corpus.files.sources import source_files
from workflows.corpus.reader import corpus_files
from workflows.corpus.revision.contamination import find_contamination
from workflows.corpus.split import TRAIN, used_files
from workflows.figures import EvaluateFigures, PrepareFigures
from workflows.judge.judge import read_judge
from workflows.record import Record
from workflows.scorecard.adversarial import measure_pair
from workflows.scorecard.adversarial_plot import pair_page
from workflows.scorecard.judged import to_judge
from workflows.scorecard.lm_eval_scores import NO_TASKS, LmEvalQuestions
from workflows.scorecard.questions import Prompt, read_questions
from workflows.scorecard.records import AdversarialScorecard, Scorecard
from workflows.scorecard.rows import (
    as_scored,
    batch_size,
    held_out_prompt,
    row_of_request,
    rows_of_given_replies,
    rows_to_answer,
)
from workflows.scorecard.scorecard import scorecard_of, scorecard_text
from workflows.scorecard.suite_scores import SuitePrompt, suite_prompts
from workflows.scorecard.worker import (
    BASE,
    SCORED_SCHEMA,
    SERVICE,
    TUNED,
    ScoredRow,
    ScoreRow,
    ScoringSettings,
    ScoringWorker,
    reads_the_same,
    scoring_settings,
)
from workflows.spec import AdversarialSpec, PipelineSpec
from workflows.stage import Context
from workflows.store import release_in_service
from workflows.suites.leaks import AskedTexts
from workflows.suites.read import read_suites
from workflows.suites.suite import Suite

# With more tokens to generate than this, the conversion for a faster engine takes less time than it saves.
_TOKENS_IN_BULK = 8_000


def run(context: Context) -> EvaluateFigures:
    """Score and generate replies with all models on the cluster's workers; returns the scorecard's figures."""
    evaluate = context.spec.evaluate
    check_fits(context.spec, ["evaluate"], context.progress)
    suites = read_suites(evaluate)
    judge = read_judge(evaluate, context.store) if evaluate.judge else None
    asked = _asked(context, suites)
    checkpoint = context.store.local_folder("train", context.inputs["train"].key, "model")
    lm_eval = LmEvalQuestions.of(context.spec, checkpoint)
    service = _release_in_service(context)
    results = _measure(context, asked, service, [] if lm_eval is None else lm_eval.texts())
    judged = (
        judge.compare(to_judge(asked, results, SERVICE if service else BASE), context.progress) if judge else None
    )
    tasks = NO_TASKS if lm_eval is None else lm_eval.scores(results, evaluate.gate.confidence)
    scorecard, items = scorecard_of(results, asked, evaluate.gate, _names(context.spec), service, judged, tasks)
    scorecard = _with_leaks(context, scorecard, asked, suites)
    if isinstance(context.spec.train.objective, AdversarialSpec):
        scorecard = replace(scorecard, pair=measure_pair(context))
    content = scorecard.to_json()
    context.store.write_json(context.store.path("evaluate", context.key, "scorecard.json"), content)
    _write_lines(context, "items.jsonl", items)
    _write_lines(context, "judged.jsonl", judged.items if judged else ())
    if scorecard.pair is not None:
        _write_page(context, scorecard.pair)
    context.progress.result("scorecard", content, scorecard_text(scorecard))
    return scorecard.figures


def _asked(context: Context, suites: Sequence[Suite]) -> list[Prompt | SuitePrompt]:
    """The questions, the first held-out prompts, and the items of the suites."""
    evaluate = context.spec.evaluate
    questions = read_questions(evaluate.questions) if evaluate.questions else []
    corpus = corpus_files(context.store, context.inputs["prepare"].key, "held_out")
    first = corpus.head(evaluate.num_replies, columns=["messages", "tools"])
    return [
        *(Prompt([{"role": "user", "content": each.text}], question=each) for each in questions),
        *map(held_out_prompt, first.to_pylist()),
        *suite_prompts(suites),
    ]


def _measure(
    context: Context, asked: Sequence[Prompt | SuitePrompt], service: str | None, requests: Sequence[str]
) -> list[ScoreRow]:
    """The losses of the held-out conversations under all models, and what each model replies; `requests` are
    lm-eval's.
    """
    evaluate, store, corpus_key = context.spec.evaluate, context.store, context.inputs["prepare"].key
    known = corpus_files(store, corpus_key, "held_out").schema.names  # earlier versions wrote fewer columns
    path = store.path("prepare", corpus_key, "corpus", "split=held_out")
    scored = ray.data.read_parquet(path, filesystem=store.filesystem)
    rows = scored.select_columns([name for name in SCORED_SCHEMA.names if name in known])
    rows = rows.map_batches(as_scored, batch_format="pyarrow")
    to_answer: list[ScoredRow] = []
    for model in (BASE, TUNED, *([SERVICE] if service else [])):
        to_answer += rows_to_answer(asked, model, evaluate.max_new_tokens)
        if model != SERVICE or _service_reads_the_same(context, service):
            to_answer += [row_of_request(request, model) for request in requests]
    to_answer = [*rows_of_given_replies(asked), *to_answer]
    if to_answer:
        rows = rows.union(ray.data.from_arrow(pa.Table.from_pylist(to_answer, schema=SCORED_SCHEMA)))
    # Read before the workers start: if they take all CPUs of the cluster, a read would wait for them forever.
    rows = rows.materialize()
    conversations = PrepareFigures.from_json(context.inputs["prepare"].figures).held_out_conversations
    num_rows = conversations + len(to_answer)
    with watching(context.progress, "conversations", total=num_rows) as board:
        found = rows.map_batches(
            ScoringWorker,
            fn_constructor_kwargs={"settings": _settings(context, to_answer, service), "board": board},
            batch_size=batch_size(num_rows, evaluate.num_workers),
            batch_format="pyarrow",
            compute=ray.data.ActorPoolStrategy(size=evaluate.num_workers),
            num_cpus=evaluate.cpus_per_worker,
            num_gpus=evaluate.gpus_per_worker or None,
            runtime_env={"env_vars": worker_environment(evaluate.cpus_per_worker, evaluate.gpus_per_worker)},
        ).take_all()
    return [json.loads(row["result"]) for row in found]


def _with_leaks(
    context: Context, scorecard: Scorecard, asked: Sequence[Prompt | SuitePrompt], suites: Sequence[Suite]
) -> Scorecard:
    """How many of the questions, and of each suite's items, stand in the conversations that were trained on."""
    questions = {
        each.question.place: each.question.text for each in asked if isinstance(each, Prompt) and each.question
    }
    leaked = _leaked(context, AskedTexts.of(questions, suites))
    if questions:
        scorecard = replace(scorecard, leaked_questions=sum(place in leaked for place in questions))
    counts = {suite.name: sum(item.place in leaked for item in suite.items) for suite in suites}
    return replace(
        scorecard, suites=tuple(replace(each, leaked=counts.get(each.name, 0)) for each in scorecard.suites)
    )


def _names(spec: PipelineSpec) -> list[str]:
    """The name of the source of each file of the corpus, if there are several sources."""
    sources = spec.data.sources
    return [sources[file.entry].shown_name for file in source_files(spec)] if len(sources) > 1 else []


def _leaked(context: Context, asked: AskedTexts) -> set[str]:
    """The places of what is asked that stands in the conversations that were trained on."""
    index = asked.index()
    if index is None:
        return set()
    store = context.store
    files = used_files(store.filesystem, store.path("prepare", context.inputs["prepare"].key, "corpus"), [TRAIN])
    with watching(context.progress, "conversations checked for what is asked") as board:
        found = find_contamination(store.filesystem, files, index, board)
    return asked.places((each.reference, each.share) for each in found)


def _release_in_service(context: Context) -> str | None:
    """The key of the release to compare with, if that is asked for and there is one."""
    spec = context.spec
    if spec.evaluate.compare_with != "service":
        return None
    release = release_in_service(context.store, spec.name, context.inputs["train"].key)
    if release is None:
        context.progress.note(
            "evaluate.compare_with: service: no other training of this pipeline was deployed; compared with the base "
            "model alone"
        )
    return None if release is None else release.key


def _settings(context: Context, to_answer: Sequence[ScoredRow], service: str | None) -> ScoringSettings:
    evaluate = context.spec.evaluate
    tokens = sum(row.get("max_new_tokens") or 0 for row in to_answer)
    return scoring_settings(context, in_bulk=tokens > _TOKENS_IN_BULK * evaluate.num_workers, service=service)


def _write_lines(context: Context, name: str, records: Sequence[Record]) -> None:
    """Write records to a file of the artifact, one a line; no file without any."""
    lines = [json.dumps(record.to_json(), ensure_ascii=False) for record in records]
    if lines:
        path = context.store.path("evaluate", context.key, name)
        context.store.write_file(path, "\n".join([*lines, ""]).encode())


def _write_page(context: Context, pair: AdversarialScorecard) -> None:
    page = context.store.path("evaluate", context.key, "pair.html")
    with context.store.filesystem.open_output_stream(page) as stream:
        stream.write(pair_page(context.spec.name, pair.replies, pair.real, pair.controls).encode())
    context.progress.note(f"quality against diversity: {page}")


def _service_reads_the_same(context: Context, service: str | None) -> bool:
    """Whether lm-eval's requests, made with the checkpoint's tokenizer, are those for the release in service too."""
    assert service is not None
    store = context.store
    checkpoint = store.local_folder("train", context.inputs["train"].key, "model")
    return reads_the_same(store.local_folder("optimize", service, "model"), checkpoint)
