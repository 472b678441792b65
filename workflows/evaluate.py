"""evaluate: base against tuned model on held-out conversations and questions, with Ray Data.

    rayconteur evaluate PIPELINE

Leaves in the store: `scorecard.json`: losses on the same tokens, replies side by side, facts, and the verdict.

Of preference pairs the losses are the chosen replies'; `preference_accuracy` is the share of pairs with a reward
margin above 0, and `reward_margin` its mean: by how much more training has raised the log-probability of the chosen
reply than that of the rejected one, in nats. Of judged replies (KTO) only the desirable ones are scored.
"""

import json
import math
from typing import Any

import pyarrow as pa
import ray
import ray.data

from models.chat import Conversation, Message, check_messages
from models.files import open_uri
from workflows.cluster import check_fits, watching, worker_environment
from workflows.evaluate_pair import measure_pair, pair_text
from workflows.pair_plot import pair_page
from workflows.pipeline import Context, StageFailed
from workflows.spec import GateSpec
from workflows.spec_train import AdversarialSpec
from workflows.store import Store

_SCORED_AT_ONCE = 16
_SCHEMA = pa.schema(
    [
        ("question", pa.int32()),  # -1 for a conversation that is scored
        ("input_ids", pa.list_(pa.int32())),
        ("supervised", pa.list_(pa.bool_())),
        ("piece_lengths", pa.list_(pa.int32())),
        ("piece_parents", pa.list_(pa.int32())),
        ("other_input_ids", pa.list_(pa.int32())),  # the rejected reply of a pair
        ("other_supervised", pa.list_(pa.bool_())),
        ("desirable", pa.bool_()),
        ("messages", pa.string()),
        ("tools", pa.string()),
    ]
)


def run(context: Context) -> dict[str, Any]:
    """Score and reply with both models on the cluster's workers; returns the scorecard's figures."""
    evaluate = context.spec.evaluate
    check_fits(context.spec, ["evaluate"], context.progress)
    corpus_key = context.inputs["prepare"].key
    path = context.store.path("prepare", corpus_key, "corpus", "split=held_out")
    questions = read_questions(evaluate.questions) if evaluate.questions else []
    prompts = [_held_out_prompt(row) for row in _first_rows(context.store, path, evaluate.num_replies)]
    asked = [*({"messages": [{"role": "user", "content": q["question"]}], **q} for q in questions), *prompts]
    scored = ray.data.read_parquet(path, filesystem=context.store.filesystem).select_columns(_SCHEMA.names[1:])
    num_rows = context.inputs["prepare"].figures["held_out_conversations"] + len(asked)
    rows = scored.map_batches(_as_scored, batch_format="pyarrow")
    if asked:
        rows = rows.union(ray.data.from_arrow(_as_prompts(asked)))
    # Read before the workers start: where they take all CPUs of the cluster, a read would wait for them for ever.
    rows = rows.materialize()
    with watching(context.progress, "conversations", total=num_rows) as board:
        results = rows.map_batches(
            Judge,
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
    scorecard = _scorecard(results, asked, evaluate.gate)
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
    return figures | {f"pair_{name}": pair[name] for name in names if name in pair}


class Judge:
    """One worker: both models in memory, scoring conversations and replying to prompts."""

    def __init__(
        self,
        store: str,
        checkpoint: str,
        base_model: str,
        precision: str,
        threads: float,
        gpus: float,
        max_new_tokens: int,
        board: Any,
    ) -> None:
        import torch

        from models.base import resolve
        from models.precision import dtype_of
        from models.score import ModelPair

        torch.set_num_threads(max(1, int(threads)))
        folder = Store(store).local_folder("train", checkpoint, "model")
        device = "cuda" if gpus else "cpu"
        self._pair = ModelPair(resolve(base_model), folder, dtype_of(precision, device), device)
        self._max_new_tokens = max_new_tokens
        self._board = board

    def __call__(self, batch: pa.Table) -> pa.Table:
        """Rows of base and tuned: loss sums with their targets, or replies."""
        rows = batch.to_pylist()
        scored = [row for row in rows if row["question"] < 0 and row["desirable"] is not False]
        asked = [row for row in rows if row["question"] >= 0]
        results = [self._score(scored)] if scored else []
        if asked:
            conversations = [
                Conversation(json.loads(row["messages"]), json.loads(row["tools"]) if row["tools"] else None)
                for row in asked
            ]
            base, tuned = self._pair.replies(conversations, self._max_new_tokens)
            results += [
                {"question": row["question"], "base_reply": before, "tuned_reply": after}
                for row, before, after in zip(asked, base, tuned, strict=True)
            ]
        self._board.add.remote(done=len(rows))
        return pa.Table.from_pylist(results, schema=_RESULT_SCHEMA)

    def _score(self, rows: list[dict[str, Any]]) -> dict[str, Any]:
        from models.objectives.preference import pack_both
        from models.packing import pack_trees
        from models.trees import tree_of

        if rows[0]["desirable"] is None and rows[0]["other_input_ids"] is not None:
            batch = pack_both(rows)
            base, tuned = (log_p.view(-1, 2) for log_p in self._pair.log_probabilities(batch))
            ratios = tuned - base
            return {
                "question": -1,
                "base_loss": -float(base[:, 0].sum()),
                "tuned_loss": -float(tuned[:, 0].sum()),
                "targets": int((batch.target_sequences % 2 == 0).sum()),
                "margins": (ratios[:, 0] - ratios[:, 1]).tolist(),
            }
        batch = pack_trees([tree_of(row) for row in rows])
        base_loss, tuned_loss = self._pair.loss_sums(batch)
        return {"question": -1, "base_loss": base_loss, "tuned_loss": tuned_loss, "targets": len(batch.targets)}


_RESULT_SCHEMA = pa.schema(
    [
        ("question", pa.int32()),
        ("base_loss", pa.float64()),
        ("tuned_loss", pa.float64()),
        ("targets", pa.int64()),
        ("margins", pa.list_(pa.float64())),
        ("base_reply", pa.string()),
        ("tuned_reply", pa.string()),
    ]
)


def read_questions(uri: str) -> list[dict[str, Any]]:
    """The questions with their facts; raises StageFailed with file and line."""
    filesystem, path = open_uri(uri)
    with filesystem.open_input_stream(path) as stream:
        lines = stream.read().splitlines()
    questions = []
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            questions.append(_question(json.loads(line)))
        except ValueError as error:
            raise StageFailed(f"evaluate.questions: {uri}:{number}: {error}") from None
    if not questions:
        raise StageFailed(f"evaluate.questions: {uri} has no questions; leave the field out to ask none")
    return questions


def _question(record: Any) -> dict[str, Any]:
    if not isinstance(record, dict):
        raise ValueError("not a JSON object")
    question, facts = record.get("question"), record.get("facts")
    check_messages([{"role": "user", "content": question}])
    spelled = (
        isinstance(facts, list)
        and facts
        and all(
            isinstance(fact, list) and fact and all(isinstance(word, str) and word.strip() for word in fact)
            for fact in facts
        )
    )
    if not spelled:
        raise ValueError('`facts` must be a list of facts, each a list of spellings, as in [["45 days"]]')
    return {"question": question, "facts": facts}


def _first_rows(store: Store, path: str, count: int) -> list[dict[str, Any]]:
    import pyarrow.dataset

    parts = pyarrow.dataset.dataset(path, filesystem=store.filesystem, format="parquet")
    rows: list[dict[str, Any]] = parts.head(count, columns=["messages", "tools"]).to_pylist()
    return rows


def _held_out_prompt(row: dict[str, Any]) -> dict[str, Any]:
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
    return marked.select(_SCHEMA.names).cast(_SCHEMA)


def _as_prompts(asked: list[dict[str, Any]]) -> pa.Table:
    rows = [
        {"question": index, "messages": json.dumps(item["messages"]), "tools": item.get("tools")}
        for index, item in enumerate(asked)
    ]
    return pa.Table.from_pylist(rows, schema=_SCHEMA)


def _scorecard(results: list[dict[str, Any]], asked: list[dict[str, Any]], gate: GateSpec) -> dict[str, Any]:
    from models.score import count_facts

    scored = [row for row in results if row["question"] < 0]
    targets = sum(row["targets"] for row in scored)
    if not targets:
        raise StageFailed("evaluate: no held-out reply is a desirable one; raise data.held_out_share or add data")
    base, tuned = (sum(row[name] for row in scored) / targets for name in ("base_loss", "tuned_loss"))
    scorecard: dict[str, Any] = {
        "base_loss": round(base, 4),
        "tuned_loss": round(tuned, 4),
        "loss_reduction": round(base - tuned, 4),
        "base_perplexity": round(math.exp(base), 3),
        "tuned_perplexity": round(math.exp(tuned), 3),
        "scored_tokens": targets,
    }
    margins = [margin for row in scored for margin in row["margins"] or []]
    if margins:
        scorecard["preference_accuracy"] = round(sum(margin > 0 for margin in margins) / len(margins), 4)
        scorecard["reward_margin"] = round(sum(margins) / len(margins), 4)
        scorecard["scored_pairs"] = len(margins)
    said = {row["question"]: row for row in results if row["question"] >= 0}
    questions, replies = [], []
    for index, item in enumerate(asked):
        pair = {"base": said[index]["base_reply"], "tuned": said[index]["tuned_reply"]}
        if "facts" in item:
            right = {f"{name}_facts": count_facts(reply, item["facts"]) for name, reply in pair.items()}
            questions.append({"question": item["question"], "facts": item["facts"], **pair, **right})
        else:
            replies.append({"messages": item["messages"], "reference": item["reference"], **pair})
    if questions:
        asked_for = sum(len(item["facts"]) for item in questions)
        for name in ("base", "tuned"):
            share = sum(item[f"{name}_facts"] for item in questions) / asked_for
            scorecard[f"{name}_fact_share"] = round(share, 4)
    passed, verdict = _judge(scorecard, gate)
    return {**scorecard, "passed": passed, "verdict": verdict, "questions": questions, "replies": replies}


def _judge(scorecard: dict[str, Any], gate: GateSpec) -> tuple[bool, str]:
    reduction = scorecard["loss_reduction"]
    accuracy = scorecard.get("preference_accuracy")
    least = gate.min_loss_reduction
    if least is None and accuracy is None:
        least = 0.0
    if least is not None and not reduction > least:
        return False, (
            f"failed: the tuned held-out loss {scorecard['tuned_loss']:.4f} is not below the base's "
            f"{scorecard['base_loss']:.4f} by more than {least:g} nats (evaluate.gate.min_loss_reduction)"
        )
    if accuracy is not None and not accuracy > gate.min_preference_accuracy:
        return False, (
            f"failed: the chosen reply favoured in {accuracy:.1%} of the held-out pairs, more than "
            f"{gate.min_preference_accuracy:.1%} asked for (evaluate.gate.min_preference_accuracy)"
        )
    share = scorecard.get("tuned_fact_share", 1.0)
    if share < gate.min_fact_share:
        return False, f"failed: {share:.0%} of the facts right, {gate.min_fact_share:.0%} asked for (evaluate.gate)"
    if accuracy is not None:
        return True, f"passed: the chosen reply favoured in {accuracy:.1%} of the held-out pairs"
    return True, f"passed: held-out loss lower by {reduction:.4f} nats a token"


def scorecard_text(scorecard: dict[str, Any]) -> str:
    """The scorecard as a person reads it."""
    lines = []
    for item in scorecard["questions"]:
        of = len(item["facts"])
        lines.append(f"  question  {item['question']}")
        lines += [
            f"    {name:<6} [{item[f'{name}_facts']}/{of}]  {_one_line(item[name])}" for name in ("base", "tuned")
        ]
    for item in scorecard["replies"]:
        lines.append(f"  held out  {_one_line(item['messages'][-1]['content'])}")
        lines += [f"    {name:<9} {_one_line(item[name])}" for name in ("base", "tuned", "reference")]
    lines.append(
        f"  held-out loss: base {scorecard['base_loss']:.4f}, tuned {scorecard['tuned_loss']:.4f} "
        f"(perplexity {scorecard['base_perplexity']:.2f} -> {scorecard['tuned_perplexity']:.2f}, "
        f"{scorecard['scored_tokens']:,} tokens)"
    )
    if "preference_accuracy" in scorecard:
        lines.append(
            f"  held-out preference accuracy: {scorecard['preference_accuracy']:.2f} "
            f"({scorecard['scored_pairs']:,} pairs, mean reward margin {scorecard['reward_margin']:.3f} nats)"
        )
    if "tuned_fact_share" in scorecard:
        shares = [f"{name} {scorecard[f'{name}_fact_share']:.2f}" for name in ("base", "tuned")]
        lines.append(f"  share of facts right: {', '.join(shares)}")
    lines += pair_text(scorecard["pair"]) if "pair" in scorecard else []
    return "\n".join([*lines, f"  {scorecard['verdict']}"])


def _one_line(text: str) -> str:
    flat = " ".join(text.split())
    return flat if len(flat) <= 300 else flat[:297] + "..."
