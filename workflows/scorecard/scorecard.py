"""The scorecard: tuned against base model in figures, and whether the gate passes."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace

from models.chat.plain_text import said_text
from models.scorers.facts import count_facts
from workflows.judge.records import Judged
from workflows.judge.text import judge_text
from workflows.record import JsonObject
from workflows.scorecard.adversarial import pair_text
from workflows.scorecard.comparisons import compare_all, facts_measure, held_out_measure, preference_measure
from workflows.scorecard.gate import gate_verdict
from workflows.scorecard.judged import JUDGE, judge_measure
from workflows.scorecard.lm_eval_scores import NO_TASKS, ScoredTasks
from workflows.scorecard.questions import Prompt, Question
from workflows.scorecard.records import AskedQuestion, ComparedReply, PartLoss, Scorecard, ScoredItem
from workflows.scorecard.suite_scores import SuitePrompt, score_suites
from workflows.scorecard.words import MODEL_NAMES, describe, value
from workflows.scorecard.worker import BASE, SERVICE, TUNED, ScoreRow
from workflows.spec import GateSpec
from workflows.stage import StageFailed


def scorecard_of(
    results: Sequence[ScoreRow],
    asked: Sequence[Prompt | SuitePrompt],
    gate: GateSpec,
    names: Sequence[str] = (),
    service: str | None = None,
    judged: Judged | None = None,
    tasks: ScoredTasks = NO_TASKS,
) -> tuple[Scorecard, Sequence[ScoredItem]]:
    """The scorecard and the items of its suites, from the workers' results.

    `names`: of the source of each file of the corpus. `service`: the key of the release in service, with which the
    gate then compares. `judged`: what a judge found of the same two models. `tasks`: those of lm-eval.
    """
    scored = [row for row in results if row.get("losses") and row["question"] < 0]
    scored.sort(key=lambda row: (row.get("source", 0), row.get("line", 0)))
    targets = sum(row["targets"] for row in scored)
    if not targets:
        raise StageFailed("evaluate: no held-out reply is a desirable one; raise data.held_out_share or add data")
    base, tuned = (sum(row["losses"][model] for row in scored) / targets for model in (BASE, TUNED))
    margins = [margin for row in scored if (margin := row.get("margin")) is not None]
    said = {(row["question"], row["model"]): _text(row["answers"][-1]) for row in results if row.get("answers")}
    prompts = {number: prompt for number, prompt in enumerate(asked) if isinstance(prompt, Prompt)}
    questions = {
        number: _asked(prompt.question, said[number, BASE], said[number, TUNED])
        for number, prompt in prompts.items()
        if prompt.question
    }
    suites = score_suites(
        {number: prompt for number, prompt in enumerate(asked) if isinstance(prompt, SuitePrompt)},
        results,
        gate.confidence,
    )
    num_facts = sum(len(item.facts) for item in questions.values())
    measures = [preference_measure(scored, names) if margins else held_out_measure(scored, names)]
    if questions:
        facts = (
            [count_facts(said[number, SERVICE], item.facts) for number, item in questions.items()]
            if service
            else None
        )
        measures.append(facts_measure([*questions.values()], facts))
    measures += [*suites.measures, *tasks.measures]
    against = SERVICE if service else BASE
    if judged is not None and (outcomes := judge_measure(judged, against)) is not None:
        measures.append(outcomes)
    comparisons = compare_all(measures, [BASE, SERVICE], gate.confidence)
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
        base_fact_share=_share(sum(item.base_facts for item in questions.values()), num_facts),
        tuned_fact_share=_share(sum(item.tuned_facts for item in questions.values()), num_facts),
        passed=False,
        verdict="",
        parts=tuple(_parts(scored, names)),
        questions=tuple(questions.values()),
        replies=tuple(
            ComparedReply(
                messages=prompt.messages,
                reference=prompt.reference,
                base=said[number, BASE],
                tuned=said[number, TUNED],
                service=said.get((number, SERVICE)),
            )
            for number, prompt in prompts.items()
            if not prompt.question
        ),
        suites=(*suites.figures, *tasks.figures),
        tasks=tasks.tasks,
        comparisons=tuple(each.record for each in comparisons),
        service=service,
        judge=None if judged is None else judged.figures,
    )
    passed, verdict = gate_verdict(scorecard, comparisons, gate, against)
    return replace(scorecard, passed=passed, verdict=verdict), (*suites.items, *tasks.items)


def _share(right: int, facts: int) -> float | None:
    return round(right / facts, 4) if facts else None


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


def _asked(question: Question, base: str, tuned: str) -> AskedQuestion:
    return AskedQuestion(
        question=question.text,
        facts=question.facts,
        base=base,
        tuned=tuned,
        base_facts=count_facts(base, question.facts),
        tuned_facts=count_facts(tuned, question.facts),
    )


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
    lines += _suite_lines(scorecard)
    if scorecard.judge is not None:
        lines.append(judge_text(scorecard.judge))
        lines += [
            f"    {describe(each)}" for each in scorecard.comparisons if each.measure == JUDGE and not each.slice
        ]
    lines += pair_text(scorecard.pair) if scorecard.pair is not None else []
    return "\n".join([*lines, f"  {scorecard.verdict}"])


def _suite_lines(scorecard: Scorecard) -> Iterator[str]:
    """Each suite with its difference to each other model, and its slices that are worse."""
    for suite in scorecard.suites:
        leaked = f", {suite.leaked:,} of them trained on" if suite.leaked else ""
        golden = ", golden" if suite.golden else ""
        yield f"  suite {suite.name} ({suite.scorer}{golden}, {suite.items:,} items{leaked})"
        for score in suite.scores:
            failed = f", {score.failed} without a reply" if score.failed else ""
            yield f"    {score.model:<8} {value(score.mean, suite.unit)}{failed}"
        for each in scorecard.comparisons:
            if each.measure == suite.name and (each.slice is None or each.is_worse):
                yield f"    against {MODEL_NAMES[each.against]}: {describe(each)}"


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
