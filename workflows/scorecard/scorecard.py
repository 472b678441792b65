"""The scorecard: tuned against base model in figures, and whether the gate passes."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace

from models.scorers.facts import count_facts
from workflows.figures import EvaluateFigures
from workflows.record import JsonObject
from workflows.scorecard.adversarial import pair_text
from workflows.scorecard.questions import Prompt, said_text
from workflows.scorecard.records import AskedQuestion, ComparedReply, PartLoss, Scorecard
from workflows.scorecard.worker import BASE, TUNED, ScoreRow
from workflows.spec import GateSpec
from workflows.stage import StageFailed


def scorecard_of(
    results: Sequence[ScoreRow], asked: Sequence[Prompt], gate: GateSpec, names: Sequence[str] = ()
) -> Scorecard:
    """The scorecard, from the workers' results. `names`: of the source of each file of the corpus."""
    scored = [row for row in results if row["question"] < 0]
    targets = sum(row["targets"] for row in scored)
    if not targets:
        raise StageFailed("evaluate: no held-out reply is a desirable one; raise data.held_out_share or add data")
    base, tuned = (sum(row["losses"][model] for row in scored) / targets for model in (BASE, TUNED))
    margins = [margin for row in scored if (margin := row.get("margin")) is not None]
    said = {(row["question"], row["model"]): _text(row["answers"][-1]) for row in results if row.get("model")}
    replies = [(said[index, BASE], said[index, TUNED]) for index in range(len(asked))]
    questions = [_asked(prompt, *both) for prompt, both in zip(asked, replies, strict=True) if prompt.question]
    num_facts = sum(len(item.facts) for item in questions)
    scorecard = Scorecard(
        base_loss=round(base, 4),
        tuned_loss=round(tuned, 4),
        loss_reduction=round(base - tuned, 4),
        base_perplexity=round(math.exp(base), 3),
        tuned_perplexity=round(math.exp(tuned), 3),
        scored_tokens=targets,
        preference_accuracy=round(sum(margin > 0 for margin in margins) / len(margins), 4) if margins else None,
        reward_margin=round(sum(margins) / len(margins), 4) if margins else None,
        scored_pairs=len(margins) or None,
        base_fact_share=round(sum(item.base_facts for item in questions) / num_facts, 4) if questions else None,
        tuned_fact_share=round(sum(item.tuned_facts for item in questions) / num_facts, 4) if questions else None,
        passed=False,
        verdict="",
        parts=tuple(_parts(scored, names)),
        questions=tuple(questions),
        replies=tuple(
            _compared(prompt, *both) for prompt, both in zip(asked, replies, strict=True) if not prompt.question
        ),
    )
    passed, verdict = gate_verdict(scorecard, gate)
    return replace(scorecard, passed=passed, verdict=verdict)


def _parts(scored: Sequence[ScoreRow], names: Sequence[str]) -> Iterator[PartLoss]:
    """The losses of each source and of each language, if there are several."""
    by_source: dict[str, list[ScoreRow]] = {}
    by_language: dict[str, list[ScoreRow]] = {}
    for row in scored:
        if names:
            by_source.setdefault(names[row["source"]], []).append(row)
        if row.get("language"):
            by_language.setdefault(f"language {row['language']}", []).append(row)
    for parts in (by_source, by_language):
        for part, rows in sorted(parts.items()) if len(parts) > 1 else ():
            targets = sum(row["targets"] for row in rows)
            if targets:
                yield PartLoss(
                    part=part,
                    base_loss=round(sum(row["losses"][BASE] for row in rows) / targets, 4),
                    tuned_loss=round(sum(row["losses"][TUNED] for row in rows) / targets, 4),
                    scored_tokens=targets,
                )


def _text(answer: JsonObject) -> str:
    """A reply as text: what it says, and its calls."""
    if "error" in answer:
        return f"[no reply: {answer['error']}]"
    return said_text(answer).strip()


def _asked(prompt: Prompt, base: str, tuned: str) -> AskedQuestion:
    question = prompt.question
    assert question is not None
    return AskedQuestion(
        question=question.text,
        facts=question.facts,
        base=base,
        tuned=tuned,
        base_facts=count_facts(base, question.facts),
        tuned_facts=count_facts(tuned, question.facts),
    )


def _compared(prompt: Prompt, base: str, tuned: str) -> ComparedReply:
    return ComparedReply(messages=prompt.messages, reference=prompt.reference, base=base, tuned=tuned)


def gate_verdict(scorecard: EvaluateFigures, gate: GateSpec) -> tuple[bool, str]:
    reduction = scorecard.loss_reduction
    accuracy = scorecard.preference_accuracy
    least = gate.min_loss_reduction
    if least is None and accuracy is None:
        least = 0.0
    if least is not None and not reduction > least:
        return False, (
            f"failed: the tuned held-out loss {scorecard.tuned_loss:.4f} is not below the base's "
            f"{scorecard.base_loss:.4f} by more than {least:g} nats (evaluate.gate.min_loss_reduction)"
        )
    if accuracy is not None and not accuracy > gate.min_preference_accuracy:
        return False, (
            f"failed: the chosen reply favoured in {accuracy:.1%} of the held-out pairs, more than "
            f"{gate.min_preference_accuracy:.1%} asked for (evaluate.gate.min_preference_accuracy)"
        )
    share = scorecard.tuned_fact_share
    if share is not None and share < gate.min_fact_share:
        return False, f"failed: {share:.0%} of the facts right, {gate.min_fact_share:.0%} asked for (evaluate.gate)"
    if accuracy is not None:
        return True, f"passed: the chosen reply favoured in {accuracy:.1%} of the held-out pairs"
    return True, f"passed: held-out loss lower by {reduction:.4f} nats a token"


def scorecard_text(scorecard: Scorecard) -> str:
    """The scorecard as text."""
    lines = [
        *(line for item in scorecard.questions for line in _question_lines(item)),
        *(line for item in scorecard.replies for line in _reply_lines(item)),
        f"  held-out loss: base {scorecard.base_loss:.4f}, tuned {scorecard.tuned_loss:.4f} "
        f"(perplexity {scorecard.base_perplexity:.2f} -> {scorecard.tuned_perplexity:.2f}, "
        f"{scorecard.scored_tokens:,} tokens)",
    ]
    lines += [
        f"    {each.part}: base {each.base_loss:.4f}, tuned {each.tuned_loss:.4f} ({each.scored_tokens:,} tokens)"
        for each in scorecard.parts
    ]
    if scorecard.preference_accuracy is not None:
        lines.append(
            f"  held-out preference accuracy: {scorecard.preference_accuracy:.2f} "
            f"({scorecard.scored_pairs:,} pairs, mean reward margin {scorecard.reward_margin:.3f} nats)"
        )
    if scorecard.tuned_fact_share is not None:
        shares = f"base {scorecard.base_fact_share:.2f}, tuned {scorecard.tuned_fact_share:.2f}"
        lines.append(f"  share of facts right: {shares}")
    if scorecard.leaked_questions:
        lines.append(
            f"  {scorecard.leaked_questions} of the {len(scorecard.questions)} questions stand in the conversations "
            "trained on: the share of facts flatters the model"
        )
    lines += pair_text(scorecard.pair) if scorecard.pair is not None else []
    return "\n".join([*lines, f"  {scorecard.verdict}"])


def _question_lines(item: AskedQuestion) -> list[str]:
    of, sides = len(item.facts), (("base", item.base_facts, item.base), ("tuned", item.tuned_facts, item.tuned))
    replies = [f"    {name:<6} [{right}/{of}]  {_one_line(reply)}" for name, right, reply in sides]
    return [f"  question  {item.question}", *replies]


def _reply_lines(item: ComparedReply) -> list[str]:
    sides = (("base", item.base), ("tuned", item.tuned), ("reference", item.reference))
    asked = f"  held out  {_one_line(str(item.messages[-1]['content']))}"
    return [asked, *(f"    {name:<9} {_one_line(reply)}" for name, reply in sides)]


def _one_line(text: str) -> str:
    flat = " ".join(text.split())
    return flat if len(flat) <= 300 else flat[:297] + "..."
