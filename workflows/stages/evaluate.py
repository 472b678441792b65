"""evaluate: base against tuned model on held-out conversations and questions, with Ray Data.

    rayconteur evaluate PIPELINE

Leaves in the store: `scorecard.json`: losses on the same tokens, replies side by side, facts, and the verdict.

Of preference pairs the losses are the chosen replies'; `preference_accuracy` is the share of pairs with a reward
margin above 0, and `reward_margin` its mean: by how much more training has raised the log-probability of the chosen
reply than that of the rejected one, in nats. Of judged replies (KTO) only the desirable ones are scored.
"""

import json
from typing import Any

import pyarrow as pa
import ray
import ray.data

from models.chat import Message
from workflows.cluster.board import watching
from workflows.cluster.workers import check_fits, worker_environment
from workflows.corpus.rows import CorpusRow
from workflows.figures import EvaluateFigures, PrepareFigures
from workflows.scorecard.adversarial import measure_pair
from workflows.scorecard.adversarial_plot import pair_page
from workflows.scorecard.questions import read_questions
from workflows.scorecard.scorecard import scorecard_of, scorecard_text
from workflows.scorecard.worker import SCORED_SCHEMA, ScoringWorker
from workflows.spec import AdversarialSpec
from workflows.stage import Context
from workflows.store import Store

_SCORED_AT_ONCE = 16


def run(context: Context) -> EvaluateFigures:
    """Score and reply with both models on the cluster's workers; returns the scorecard's figures."""
    evaluate = context.spec.evaluate
    check_fits(context.spec, ["evaluate"], context.progress)
    corpus_key = context.inputs["prepare"].key
    path = context.store.path("prepare", corpus_key, "corpus", "split=held_out")
    questions = read_questions(evaluate.questions) if evaluate.questions else []
    prompts = [_held_out_prompt(row) for row in _first_rows(context.store, path, evaluate.num_replies)]
    asked = [*({"messages": [{"role": "user", "content": q["question"]}], **q} for q in questions), *prompts]
    scored = ray.data.read_parquet(path, filesystem=context.store.filesystem).select_columns(SCORED_SCHEMA.names[1:])
    corpus = PrepareFigures.from_json(context.inputs["prepare"].figures)
    num_rows = corpus.held_out_conversations + len(asked)
    rows = scored.map_batches(_as_scored, batch_format="pyarrow")
    if asked:
        rows = rows.union(ray.data.from_arrow(_as_prompts(asked)))
    # Read before the workers start: where they take all CPUs of the cluster, a read would wait for them for ever.
    rows = rows.materialize()
    with watching(context.progress, "conversations", total=num_rows) as board:
        results = rows.map_batches(
            ScoringWorker,
            fn_constructor_kwargs={
                "store": context.store.uri,
                "checkpoint": context.inputs["train"].key,
                "base_model": context.spec.base_model,
                "precision": context.spec.train.precision,
                "threads": evaluate.cpus_per_worker,
                "gpus": evaluate.gpus_per_worker,
                "max_new_tokens": evaluate.max_new_tokens,
                "board": board,
            },
            batch_size=_SCORED_AT_ONCE,
            batch_format="pyarrow",
            compute=ray.data.ActorPoolStrategy(size=evaluate.num_workers),
            num_cpus=evaluate.cpus_per_worker,
            num_gpus=evaluate.gpus_per_worker or None,
            runtime_env={"env_vars": worker_environment(evaluate.cpus_per_worker, evaluate.gpus_per_worker)},
        ).take_all()
    scorecard = scorecard_of(results, asked, evaluate.gate)
    if isinstance(context.spec.train.objective, AdversarialSpec) and (pair := measure_pair(context)) is not None:
        scorecard["pair"] = pair
    context.store.write_json(context.store.path("evaluate", context.key, "scorecard.json"), scorecard)
    if "pair" in scorecard:
        page = context.store.path("evaluate", context.key, "pair.html")
        with context.store.filesystem.open_output_stream(page) as stream:
            stream.write(pair_page(context.spec.name, scorecard["pair"]).encode())
        context.progress.note(f"quality against diversity: {page}")
    context.progress.result("scorecard", scorecard, scorecard_text(scorecard))
    figures = {name: value for name, value in scorecard.items() if not isinstance(value, list | dict)}
    pair = scorecard.get("pair", {})
    names = ("loss", "reranked_loss", "continued_loss", "verdict", "turns_verdict")
    return EvaluateFigures.from_json(figures | {f"pair_{name}": pair[name] for name in names if name in pair})


def _first_rows(store: Store, path: str, count: int) -> list[CorpusRow]:
    import pyarrow.dataset

    parts = pyarrow.dataset.dataset(path, filesystem=store.filesystem, format="parquet")
    rows: list[CorpusRow] = parts.head(count, columns=["messages", "tools"]).to_pylist()
    return rows


def _held_out_prompt(row: CorpusRow) -> dict[str, Any]:
    """A held-out conversation up to its last assistant turn, and that turn as what was really said."""
    messages: list[Message] = json.loads(row["messages"])
    last = max(index for index, message in enumerate(messages) if message["role"] == "assistant")
    return {"messages": messages[: max(last, 1)], "tools": row["tools"], "reference": _said(messages[last])}


def _said(message: Message) -> str:
    """What a reply says or calls."""
    calls = [
        f"{call['function']['name']}({json.dumps(call['function']['arguments'], ensure_ascii=False)})"
        for call in message.get("tool_calls", ())
    ]
    return " ".join([text for text in (message["content"], *calls) if text])


def _as_scored(table: pa.Table) -> pa.Table:
    marked = table.append_column("question", pa.array([-1] * len(table), pa.int32()))
    return marked.select(SCORED_SCHEMA.names).cast(SCORED_SCHEMA)


def _as_prompts(asked: list[dict[str, Any]]) -> pa.Table:
    rows = [
        {"question": index, "messages": json.dumps(item["messages"]), "tools": item.get("tools")}
        for index, item in enumerate(asked)
    ]
    return pa.Table.from_pylist(rows, schema=SCORED_SCHEMA)
