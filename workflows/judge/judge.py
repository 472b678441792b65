"""Let a judge compare the replies of two models.

judge = read_judge(evaluate, store)            # at the start of the stage: raises StageFailed for unusable files
judged = judge.compare([ToJudge("7", conversation, base_reply, tuned_reply)], progress)
judged.scored                                  # items with a score of 1, 0.5 or 0; none if the judge is refused

Pairs are judged in both orders, because judges favour a place (Zheng et al. 2023, arXiv:2306.05685, section 3.4); the
two answers must name the same reply as the winner, else the pair is a tie.
"""

import asyncio
import contextlib
import os
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace

from workflows.judge.agreement import Winners, agreement_of, consistency_of, first_place_share_of
from workflows.judge.answers import AnswerForm
from workflows.judge.client import JudgeClient, JudgeEndpoint
from workflows.judge.judging import Judgement, Judging, Pair
from workflows.judge.labels import Label, read_labels
from workflows.judge.prompt import JudgePrompt, read_prompt
from workflows.judge.records import AgreementFigures, Judged, JudgedItem, JudgeFigures, Outcome, ToJudge
from workflows.judge.settings import find_release
from workflows.progress import Progress
from workflows.spec import EvaluateSpec, JudgeSpec
from workflows.stage import StageFailed
from workflows.store import Artifact, Store, content_key
from workflows.suites.reply_cache import ReplyCache

_SHOWN_EVERY_S = 0.5
_OUTCOMES: dict[str | None, Outcome] = {"first": "loss", "tie": "tie", "second": "win", None: "no answer"}


def read_judge(evaluate: EvaluateSpec, store: Store) -> "Judge":
    """The judge of `evaluate.judge`, which must be there; raises StageFailed for its files, key or release."""
    spec = evaluate.judge
    assert spec is not None
    release = find_release(store, spec.release) if spec.release else None
    labels = read_labels(spec.labels) if spec.labels else []
    return Judge(evaluate, spec, store, read_prompt(spec), labels, read_key(spec), release)


def read_key(spec: JudgeSpec) -> str | None:
    """The API key from the environment; raises StageFailed, without the key, if it is missing or cannot be one."""
    if spec.api_key_env is None:
        return None
    key = os.environ.get(spec.api_key_env, "").strip()
    if not key:
        raise StageFailed(
            f"evaluate.judge.api_key_env: the environment variable {spec.api_key_env} is not set or empty here; "
            "export it, and for a job set it in the environment that starts Ray on the cluster's head"
        )
    if not key.isascii() or not key.isprintable() or " " in key:
        raise StageFailed(
            f"evaluate.judge.api_key_env: {spec.api_key_env} holds characters that an API key cannot have, such as "
            "spaces; set it to the key alone"
        )
    return key


@dataclass(frozen=True)
class Judge:
    """A judge with its files read."""

    evaluate: EvaluateSpec
    spec: JudgeSpec
    store: Store
    prompt: JudgePrompt
    labels: Sequence[Label]
    key: str | None = field(repr=False)
    release: Artifact | None

    @property
    def name(self) -> str:
        """For people: the model and where, or the release."""
        if self.release is not None:
            return f"release {self.release.key} of {self.release.pipeline}"
        return f"{self.spec.model} at {self.spec.url}"

    def compare(self, items: Sequence[ToJudge], progress: Progress) -> Judged:
        """What the judge finds of the items; of the labelled pairs first, which may end it.

        Raises StageFailed if the judge is away for longer than `max_away_s`. Answers are kept in the store, also
        those before an error: what was answered is not asked again.
        """
        with self._endpoint() as endpoint:
            judged, fixes_temperature = asyncio.run(self._compare(endpoint, items, progress))
        if not fixes_temperature:
            progress.note("evaluate.judge: the judge refuses temperature 0, so other runs may get other answers")
        return judged

    async def _compare(
        self, endpoint: JudgeEndpoint, items: Sequence[ToJudge], progress: Progress
    ) -> tuple[Judged, bool]:
        spec = self.spec
        different = [Pair(item.asked, item.first, item.second) for item in items if item.first != item.second]
        async with JudgeClient(endpoint, self._cache()) as client:
            display = _Display(progress, client, 2 * (len(self.labels) + len(different)))
            judging = Judging(client, self.prompt, AnswerForm(spec.mode, [*spec.criteria]), display.one_more)
            labelled = await judging.all([Pair(label.asked, label.first, label.second) for label in self.labels])
            agreement = self._agreement(labelled)
            refused = _too_few_answers(spec, labelled, "labelled pairs") or _disagrees(spec, agreement)
            judgements = [] if refused else await judging.all(different)
        both = [each.winners for each in [*labelled, *judgements] if each.winners]
        refused = refused or _too_few_answers(spec, judgements, "pairs") or _inconsistent(spec, both)
        in_order = iter(judgements)
        judged = (
            [_judged(item, None if item.first == item.second else next(in_order)) for item in items]
            if len(judgements) == len(different)
            else []
        )
        figures = _figures(self.name, spec, judged, client)
        figures = replace(
            figures,
            items=len(items),
            identical=len(items) - len(different),
            consistency=consistency_of(both),
            first_place_share=first_place_share_of(both),
            agreement=agreement,
            refused=refused,
        )
        return Judged(figures=figures, items=tuple(judged)), client.fixes_temperature

    @contextlib.contextmanager
    def _endpoint(self) -> Iterator[JudgeEndpoint]:
        spec = self.spec
        endpoint = JudgeEndpoint(
            url=spec.url or "http://judge/v1",
            model=spec.model or "judge",
            max_new_tokens=spec.max_new_tokens,
            max_concurrent=spec.max_concurrent,
            timeout_s=spec.timeout_s,
            max_away_s=spec.max_away_s,
            key=self.key,
            key_name=spec.api_key_env,
        )
        if self.release is None:
            yield endpoint
            return
        from workflows.judge.release import served_release

        with served_release(self.store, self.release, self.evaluate, spec.max_concurrent) as transport:
            yield replace(endpoint, transport=transport)

    def _cache(self) -> ReplyCache:
        release = None if self.release is None else self.release.key
        identity = {"url": self.spec.url, "model": self.spec.model, "release": release}
        return ReplyCache(self.store, content_key(identity))

    def _agreement(self, labelled: Sequence[Judgement]) -> AgreementFigures | None:
        found = zip(self.labels, labelled, strict=True)
        return agreement_of([(label.prefers, each.winner) for label, each in found if each.winner])


class _Display:
    """Shows the judge's progress."""

    def __init__(self, progress: Progress, client: JudgeClient, total: int) -> None:
        self._progress, self._client, self._total = progress, client, total
        self._done, self._shown = 0, 0.0

    def one_more(self) -> None:
        """Count an answer."""
        self._done += 1
        if self._done == self._total or time.monotonic() - self._shown > _SHOWN_EVERY_S:
            self._shown = time.monotonic()
            figures = {"from_the_store": self._client.cached} if self._client.cached else {}
            self._progress.update(self._done, self._total, "judgements", figures)


def _judged(item: ToJudge, found: Judgement | None) -> JudgedItem:
    """`found` is None for replies that are the same."""
    judged = JudgedItem(
        id=item.id,
        group=item.group or item.id,
        tags=item.tags,
        outcome="tie" if found is None else _OUTCOMES[found.winner],
        reasons=() if found is None else found.reasons,
        winners=None if found is None else found.winners,
    )
    if found is None or found.scores is None:
        return judged
    first, second = found.scores
    return replace(judged, first_scores=first.scores, second_scores=second.scores)


def _figures(name: str, spec: JudgeSpec, judged: Sequence[JudgedItem], client: JudgeClient) -> JudgeFigures:
    """The figures of the outcomes and of the requests."""
    outcomes = [item.outcome for item in judged]
    return JudgeFigures(
        judge=name,
        mode=spec.mode,
        items=len(judged),
        wins=outcomes.count("win"),
        ties=outcomes.count("tie"),
        losses=outcomes.count("loss"),
        no_answers=outcomes.count("no answer"),
        identical=0,
        requests=client.requests,
        cached=client.cached,
        input_tokens=client.input_tokens,
        output_tokens=client.output_tokens,
        cost=_cost(spec, client),
    )


def _too_few_answers(spec: JudgeSpec, judgements: Sequence[Judgement], of: str) -> str:
    without = [each for each in judgements if each.winner is None]
    if len(without) <= spec.max_no_answer * len(judgements):
        return ""
    return (
        f"no usable answer for {len(without)} of {len(judgements)} {of}, {spec.max_no_answer:.0%} allowed "
        f"(evaluate.judge.max_no_answer), such as: {without[0].reasons[0]}"
    )


def _disagrees(spec: JudgeSpec, agreement: AgreementFigures | None) -> str:
    if agreement is None or agreement.share >= spec.min_agreement:
        return ""
    return (
        f"it agrees with people in {agreement.share:.0%} of {agreement.labels} labelled pairs "
        f"({agreement.low:.0%} to {agreement.high:.0%}), {spec.min_agreement:.0%} asked for "
        "(evaluate.judge.min_agreement)"
    )


def _inconsistent(spec: JudgeSpec, both: Sequence[Winners]) -> str:
    consistency = consistency_of(both)
    if consistency is None or consistency >= spec.min_consistency:
        return ""
    return (
        f"it names the same winner in both orders in {consistency:.0%} of {len(both)} pairs, "
        f"{spec.min_consistency:.0%} asked for (evaluate.judge.min_consistency)"
    )


def _cost(spec: JudgeSpec, client: JudgeClient) -> float | None:
    if spec.input_price is None or spec.output_price is None:
        return None
    return round((client.input_tokens * spec.input_price + client.output_tokens * spec.output_price) / 1e6, 6)
