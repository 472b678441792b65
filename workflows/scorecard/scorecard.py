"""The scorecard: tuned against base in figures, and whether that passes the gate."""

import math
from typing import Any

from workflows.scorecard.adversarial import pair_text
from workflows.spec import GateSpec
from workflows.stage import StageFailed


def scorecard_of(results: list[dict[str, Any]], asked: list[dict[str, Any]], gate: GateSpec) -> dict[str, Any]:
    from models.measures.base_and_tuned import count_facts

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
    passed, verdict = gate_verdict(scorecard, gate)
    return {**scorecard, "passed": passed, "verdict": verdict, "questions": questions, "replies": replies}


def gate_verdict(scorecard: dict[str, Any], gate: GateSpec) -> tuple[bool, str]:
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
