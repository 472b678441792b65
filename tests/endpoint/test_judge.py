"""A judge over HTTP: a stand-in for an endpoint on this machine that favours a place, knows the best reply, answers
nonsense, is slow, or goes away.
"""

import asyncio
import hashlib
import json
import re
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from fastapi import Request
from fastapi.responses import JSONResponse, Response

from models.chat.form import Conversation
from models.statistics.comparison import Comparison, compare
from workflows.judge.judge import Judge, read_judge
from workflows.judge.records import Judged, ToJudge
from workflows.judge.text import judge_text
from workflows.progress import Progress
from workflows.spec import EvaluateSpec, JudgeSpec
from workflows.stage import StageFailed
from workflows.store import Store

# A minimal prompt, from which the stand-in can read all it needs.
PROMPT = "{conversation}\n<A>{first_reply}</A><B>{second_reply}</B>"
Answer = Callable[[str, dict[str, Any]], str | Response]


class StandIn:
    """An endpoint whose answers a test writes."""

    def __init__(self, serving: Callable[[Any], AbstractContextManager[str]], answer: Answer) -> None:
        self.answer = answer
        self.bodies: list[dict[str, Any]] = []
        self.keys: list[str | None] = []
        self.at_once = self.most_at_once = 0
        self.pause_s = 0.0
        self._serving = serving(self)

    def __enter__(self) -> "StandIn":
        self.url = f"{self._serving.__enter__()}/v1"
        return self

    def __exit__(self, *error: Any) -> None:
        self._serving.__exit__(*error)

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """The ASGI application: a framework would take most of the time of thousands of requests."""
        if scope["type"] == "http":
            assert scope["path"] == "/v1/chat/completions"
            response = await self.reply(Request(scope, receive))
            await response(scope, receive, send)

    async def reply(self, request: Request) -> Response:
        body = await request.json()
        self.bodies.append(body)
        self.keys.append(request.headers.get("Authorization"))
        self.at_once += 1
        self.most_at_once = max(self.most_at_once, self.at_once)
        try:
            await asyncio.sleep(self.pause_s)
            answer = self.answer(body["messages"][0]["content"], body)
        finally:
            self.at_once -= 1
        if isinstance(answer, Response):
            return answer
        usage = {"prompt_tokens": 100, "completion_tokens": 10}
        message = {"role": "assistant", "content": answer}
        return JSONResponse({"choices": [{"message": message, "finish_reason": "stop"}], "usage": usage})


@pytest.fixture
def endpoint(serving: Any) -> Iterator[Callable[[Answer], StandIn]]:
    opened = []

    def start(answer: Answer) -> StandIn:
        opened.append(StandIn(serving, answer).__enter__())
        return opened[-1]

    yield start
    for each in opened:
        each.__exit__(None, None, None)


@pytest.fixture
def judge_at(tmp_path: Path) -> Callable[..., Judge]:
    """A judge at a URL, with a store that later judges of the same test share."""
    prompt = tmp_path / "prompt.txt"
    prompt.write_text(PROMPT)

    def make(url: str, **fields: Any) -> Judge:
        values = {"url": url, "model": "m", "prompt": str(prompt), "max_away_s": 0, **fields}
        return read_judge(EvaluateSpec(judge=JudgeSpec(**values)), Store(str(tmp_path / "store")))

    return make


def replies_in(prompt: str) -> tuple[str, str]:
    found = re.search(r"<A>(.*)</A><B>(.*)</B>", prompt)
    assert found is not None
    return found[1], found[2]


def verdict(winner: str) -> str:
    return json.dumps({"reason": f"{winner} it is.", "winner": winner})


def better(prompt: str, body: dict[str, Any] | None = None) -> str:
    """Prefers the reply whose number is larger."""
    first, second = (int(reply.rpartition(" ")[2]) for reply in replies_in(prompt))
    return verdict("A" if first > second else "B" if second > first else "tie")


def item(number: int, first: str, second: str, **fields: Any) -> ToJudge:
    asked = Conversation([{"role": "user", "content": f"Question {number}"}])
    return ToJudge(str(number), asked, first, second, **fields)


def items_with_a_winner(count: int, wins: int) -> list[ToJudge]:
    """Items of which the second reply is better in the first `wins`, and the first reply in all others."""
    return [item(at, f"of the base {5}", f"of the checkpoint {9 if at < wins else 1}") for at in range(count)]


def compared(judge: Judge, items: list[ToJudge]) -> Judged:
    with Progress(json_lines=True) as progress:
        return judge.compare(items, progress)


def against_ties(judged: Judged) -> Comparison:
    """The items' scores against 0.5, the score of a tie."""
    scores = [each.score or 0.0 for each in judged.scored]
    return compare([0.5] * len(scores), scores, [each.group for each in judged.scored])


def favours_first_place(prompt: str, body: dict[str, Any]) -> str:
    """Names the first place in 70 % of cases, whatever stands there."""
    draw = int.from_bytes(hashlib.sha256(prompt.encode()).digest()[:4]) / 2**32
    return verdict("A" if draw < 0.7 else "B")


def test_a_judge_that_favours_the_first_place_finds_no_winner(
    endpoint: Callable[[Answer], StandIn], judge_at: Callable[..., Judge]
) -> None:
    items = [item(at, "the one reply", "the other reply") for at in range(1000)]
    at = endpoint(favours_first_place)
    judged = compared(judge_at(at.url, min_consistency=0), items)
    figures = judged.figures
    assert figures.requests == len(at.bodies) == 2000
    assert figures.first_place_share == pytest.approx(0.7, abs=0.03)
    assert figures.consistency == pytest.approx(2 * 0.7 * 0.3, abs=0.05)
    assert figures.ties == pytest.approx(580, abs=50)
    found = against_ties(judged)
    assert found.items == 1000
    assert found.low < 0 < found.high
    # In one order alone, the same answers would show a winner that does not exist.
    only_once = [each.winners[0] for each in judged.items if each.winners]
    assert only_once.count("first") / 1000 == pytest.approx(0.7, abs=0.04)
    # With the default floor, the judge is refused. All its answers are in the store.
    refused = compared(judge_at(at.url), items)
    assert refused.figures.cached == len(at.bodies) == 2000
    assert "names the same winner in both orders in 4" in refused.figures.refused
    assert refused.scored == []
    assert "refused" in judge_text(refused.figures)


@pytest.mark.parametrize(("count", "is_found"), [(50, False), (200, True)])
def test_a_perfect_judge_finds_the_better_model(
    endpoint: Callable[[Answer], StandIn], judge_at: Callable[..., Judge], count: int, is_found: bool
) -> None:
    """Of 60 % wins, docs/judge.md has the share of cases in which so many items show the winner."""
    at = endpoint(better)
    judged = compared(judge_at(at.url), items_with_a_winner(count, round(0.6 * count)))
    figures = judged.figures
    assert (figures.wins, figures.ties, figures.losses) == (0.6 * count, 0, 0.4 * count)
    assert (figures.consistency, figures.first_place_share, figures.refused) == (1.0, 0.5, "")
    assert sum(each.score or 0 for each in judged.scored) == 0.6 * count
    assert judged.items[0].winners == ("second", "second")
    assert {body["temperature"] for body in at.bodies} == {0}
    assert judged.items[0].reasons == ("B it is.", "A it is.")
    found = against_ties(judged)
    assert (found.low > 0) == is_found
    assert found.gain == pytest.approx(0.1)


def test_nonsense_is_asked_once_more_and_then_counts_as_no_answer(
    endpoint: Callable[[Answer], StandIn], judge_at: Callable[..., Judge]
) -> None:
    def answer(prompt: str, body: dict[str, Any]) -> str:
        number = int(re.findall(r"Question (\d+)", prompt)[0])
        if number == 0 or (number == 1 and len(body["messages"]) == 1):
            return "I like both."
        return better(prompt)

    at = endpoint(answer)
    judged = compared(judge_at(at.url, max_no_answer=0.25), items_with_a_winner(4, 4))
    assert [each.outcome for each in judged.items] == ["no answer", "win", "win", "win"]
    assert len(at.bodies) == 4 + 4 + 2 + 2
    repeated = [body["messages"] for body in at.bodies if len(body["messages"]) > 1]
    assert len(repeated) == 4
    assert repeated[0][1] == {"role": "assistant", "content": "I like both."}
    assert "does not have the form" in repeated[0][2]["content"]
    assert judged.items[0].reasons == ("no usable answer: 'I like both.'",) * 2
    assert judged.items[0].score is None
    assert [each.id for each in judged.scored] == ["1", "2", "3"]
    assert judged.figures.refused == ""
    refused = compared(judge_at(at.url, max_no_answer=0.2), items_with_a_winner(4, 4)).figures
    assert "no usable answer for 1 of 4 pairs, 20% allowed (evaluate.judge.max_no_answer)" in refused.refused
    assert "I like both." in refused.refused
    assert len(at.bodies) == 12  # also nonsense is not paid twice


def test_an_endpoint_without_response_format_is_asked_for_a_last_line(
    endpoint: Callable[[Answer], StandIn], judge_at: Callable[..., Judge]
) -> None:
    def answer(prompt: str, body: dict[str, Any]) -> str | Response:
        if "response_format" in body:
            return JSONResponse({"detail": "extra fields not permitted"}, 422)
        assert "end with a line" in prompt
        return f"Because.\nVERDICT: {json.loads(better(prompt))['winner']}"

    at = endpoint(answer)
    judged = compared(judge_at(at.url), items_with_a_winner(3, 2))
    assert [each.outcome for each in judged.items] == ["win", "win", "loss"]
    assert len(at.bodies) == 1 + 6
    assert judged.items[0].reasons[0] == "Because."


def test_fields_that_newer_models_refuse_are_left_out(
    endpoint: Callable[[Answer], StandIn], judge_at: Callable[..., Judge], capsys: pytest.CaptureFixture[str]
) -> None:
    def answer(prompt: str, body: dict[str, Any]) -> str | Response:
        for name in ("max_tokens", "temperature"):
            if name in body:
                return JSONResponse({"error": {"message": f"Unsupported: '{name}'", "param": name}}, 400)
        assert body["max_completion_tokens"] == 77
        return better(prompt)

    at = endpoint(answer)
    judged = compared(judge_at(at.url, max_new_tokens=77), items_with_a_winner(2, 1))
    assert [each.outcome for each in judged.items] == ["win", "loss"]
    assert len(at.bodies) == 2 + 4
    assert "response_format" in at.bodies[-1]
    assert "refuses temperature 0" in capsys.readouterr().out


def test_a_pair_that_the_judge_refuses_has_no_answer(
    endpoint: Callable[[Answer], StandIn], judge_at: Callable[..., Judge]
) -> None:
    def answer(prompt: str, body: dict[str, Any]) -> str | Response:
        if "Question 1" in prompt:
            return JSONResponse({"error": {"message": "maximum context length is 8"}}, 400)
        return better(prompt)

    at = endpoint(answer)
    judged = compared(judge_at(at.url, max_no_answer=0.5), items_with_a_winner(2, 2))
    assert [each.outcome for each in judged.items] == ["win", "no answer"]
    assert "maximum context length is 8" in judged.items[1].reasons[0]
    assert "response_format" in at.bodies[0]


def test_a_busy_judge_is_asked_again_when_it_says(
    endpoint: Callable[[Answer], StandIn], judge_at: Callable[..., Judge], monkeypatch: pytest.MonkeyPatch
) -> None:
    pauses: list[float] = []

    async def sleep(seconds: float) -> None:
        pauses.append(seconds)

    class Waiting:
        """asyncio for the client, whose pauses end at once."""

        def __getattr__(self, name: str) -> Any:
            return sleep if name == "sleep" else getattr(asyncio, name)

    monkeypatch.setattr("workflows.judge.client.asyncio", Waiting())
    refusals = [
        Response("{}", 429, {"Retry-After": "7"}),
        Response("{}", 503, {"Retry-After": "Wed, 21 Oct 2015 07:28:00 GMT"}),
        Response("busy", 500),
        JSONResponse({"error": {"message": "provider is overloaded", "code": 502}}),
        Response("{}", 529, {"Retry-After": "soon"}),
    ]

    def answer(prompt: str, body: dict[str, Any]) -> str | Response:
        return refusals.pop(0) if refusals else better(prompt)

    at = endpoint(answer)
    judged = compared(judge_at(at.url, max_away_s=100, max_concurrent=1), items_with_a_winner(1, 1))
    assert judged.figures.wins == 1
    assert len(at.bodies) == 5 + 2
    assert pauses[0] == 7
    assert all(0.5 * 2**tries <= 2 * pause <= 3 * 0.5 * 2**tries for tries, pause in enumerate(pauses[1:], start=1))
    refusals.append(Response("{}", 429, {"Retry-After": "3600"}))
    with pytest.raises(StageFailed, match="asks to wait 3600 s: 429"):
        compared(judge_at(at.url, max_away_s=100), items_with_a_winner(2, 2))


def test_a_slow_judge_is_away(endpoint: Callable[[Answer], StandIn], judge_at: Callable[..., Judge]) -> None:
    at = endpoint(lambda prompt, body: better(prompt))
    at.pause_s = 2
    with pytest.raises(StageFailed, match=r"no answer within 0\.1 s \(evaluate\.judge\.timeout_s\)") as error:
        compared(judge_at(at.url, timeout_s=0.1, max_away_s=0.2), items_with_a_winner(2, 1))
    assert "what it has answered is kept" in str(error.value)


def test_a_judge_that_goes_away_is_asked_only_what_is_missing(
    endpoint: Callable[[Answer], StandIn], judge_at: Callable[..., Judge]
) -> None:
    answered = []

    def answer(prompt: str, body: dict[str, Any]) -> str | Response:
        if len(answered) == 30:
            return Response("maintenance", 503)
        answered.append(prompt)
        return better(prompt)

    at = endpoint(answer)
    items = items_with_a_winner(40, 24)
    with pytest.raises(StageFailed, match=r"has answered nothing for 0 s .*503 \(maintenance\).*run again"):
        compared(judge_at(at.url), items)
    assert len(answered) == 30
    at.answer = lambda prompt, body: better(prompt)
    at.bodies.clear()
    figures = compared(judge_at(at.url), items).figures
    assert (figures.requests, figures.cached, len(at.bodies)) == (50, 30, 50)
    assert (figures.wins, figures.losses, figures.input_tokens, figures.output_tokens) == (24, 16, 5000, 500)
    # Another prompt, model or reply is another question.
    assert compared(judge_at(at.url, model="other"), items[:1]).figures.cached == 0
    assert compared(judge_at(at.url), items[:1]).figures.requests == 0
    assert compared(judge_at(at.url), [item(0, "of the base 5", "of the checkpoint 8")]).figures.cached == 0


def test_nobody_at_the_address(judge_at: Callable[..., Judge]) -> None:
    with pytest.raises(
        StageFailed, match=r"evaluate\.judge: http://127\.0\.0\.1:9/v1 has answered nothing .*ConnectError"
    ):
        compared(judge_at("http://127.0.0.1:9/v1"), items_with_a_winner(2, 1))


@pytest.mark.parametrize(("answer", "words"), [
    (JSONResponse({"error": {"message": "no model m"}}, 404), r"url: .*404 \(no model m\).*often ends in /v1"),
    (Response("", 301, {"Location": "https://elsewhere"}), r"url: .*301 \(https://elsewhere\)"),
    (Response("<html>Welcome</html>"), "no chat completion: 200 .<html>Welcome</html>."),
    (JSONResponse({"choices": []}), "no chat completion"),
    (JSONResponse([1]), "no chat completion"),
])  # fmt: skip
def test_what_is_no_such_endpoint_is_said_at_once(
    endpoint: Callable[[Answer], StandIn], judge_at: Callable[..., Judge], answer: Response, words: str
) -> None:
    at = endpoint(lambda prompt, body: answer)
    with pytest.raises(StageFailed, match=words):
        compared(judge_at(at.url, max_away_s=600), items_with_a_winner(2, 1))
    assert len(at.bodies) == 1


def test_the_key_is_sent_and_stands_nowhere(
    endpoint: Callable[[Answer], StandIn],
    judge_at: Callable[..., Judge],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
) -> None:
    monkeypatch.setenv("JUDGE_KEY", "sk-very-secret")
    at = endpoint(lambda prompt, body: better(prompt))
    judge = judge_at(at.url, api_key_env="JUDGE_KEY")
    assert "sk-very-secret" not in repr(judge)
    judged = compared(judge, items_with_a_winner(2, 1))
    assert at.keys == ["Bearer sk-very-secret"] * 4
    at.answer = lambda prompt, body: JSONResponse({"error": {"message": "Incorrect key: sk-very-secret."}}, 401)
    with pytest.raises(StageFailed, match=r"Incorrect key: <the key>\..*put a valid key into JUDGE_KEY") as error:
        compared(judge, items_with_a_winner(3, 3))
    shown = [capsys.readouterr().out, str(error.value), json.dumps(judged.to_json())]
    shown += [file.read_text(errors="replace") for file in (tmp_path / "store").rglob("*") if file.is_file()]
    assert not any("sk-very-secret" in text for text in shown)


def labels_file(folder: Path, count: int, wrong: int) -> str:
    """Pairs of which people prefer the second, but in the first `wrong` the reply with the smaller number."""
    file = folder / "labels.jsonl"
    lines = [
        {
            "question": f"Question {100 + at}",
            "first": "a 1",
            "second": "b 2",
            "prefers": "first" if at < wrong else "second",
        }
        for at in range(count)
    ]
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return str(file)


def test_a_judge_that_disagrees_with_people_is_refused_before_it_costs(
    endpoint: Callable[[Answer], StandIn], judge_at: Callable[..., Judge], tmp_path: Path
) -> None:
    at = endpoint(better)
    judged = compared(judge_at(at.url, labels=labels_file(tmp_path, 10, wrong=5)), items_with_a_winner(50, 30))
    assert "agrees with people in 50% of 10 labelled pairs (24% to 76%), 60% asked for" in judged.figures.refused
    assert len(at.bodies) == 20
    assert (judged.items, judged.scored, judged.figures.items) == ((), [], 50)
    assert "none of 50 items judged" in judge_text(judged.figures)
    judged = compared(judge_at(at.url, labels=labels_file(tmp_path, 10, wrong=1)), items_with_a_winner(5, 3))
    assert judged.figures.agreement is not None
    assert (judged.figures.agreement.share, judged.figures.refused, judged.figures.wins) == (0.9, "", 3)
    assert (judged.figures.cached, len(at.bodies)) == (20, 30)
    assert "agrees with people in 90% of 10 pairs" in judge_text(judged.figures)


def test_replies_by_rubric(
    endpoint: Callable[[Answer], StandIn], judge_at: Callable[..., Judge], tmp_path: Path
) -> None:
    (tmp_path / "rubric.txt").write_text("{criteria}\n{conversation}\n<R>{reply}</R>")

    def answer(prompt: str, body: dict[str, Any]) -> str:
        number = int(re.findall(r"<R>.* (\d+)</R>", prompt)[0])
        return json.dumps({"reason": "r", "scores": {"true": min(number, 5), "brief": 3}})

    at = endpoint(answer)
    fields = {"mode": "rubric", "criteria": {"true": "", "brief": ""}, "prompt": str(tmp_path / "rubric.txt")}
    judged = compared(
        judge_at(at.url, **fields), [item(0, "x 2", "y 4"), item(1, "x 3", "y 3"), item(2, "x 5", "y 1")]
    )
    assert [each.outcome for each in judged.items] == ["win", "tie", "loss"]
    assert (judged.items[0].first_scores, judged.items[0].second_scores) == (
        {"true": 2, "brief": 3},
        {"true": 4, "brief": 3},
    )
    assert (judged.figures.consistency, judged.figures.first_place_share) == (None, None)
    assert len(at.bodies) == 6
    assert Judged.from_json(json.loads(json.dumps(judged.to_json()))) == judged


def test_identical_replies_are_ties_without_a_request_and_the_rest_has_its_price(
    endpoint: Callable[[Answer], StandIn], judge_at: Callable[..., Judge]
) -> None:
    at = endpoint(better)
    items = [
        item(7, "x 1", "x 1"), item(7, "x 1", "y 2", tags={"topic": "fees"}, group="talk"), item(7, "z 3", "z 3"),
    ]  # fmt: skip
    judged = compared(judge_at(at.url, input_price=5, output_price=20), items)
    assert [each.outcome for each in judged.items] == ["tie", "win", "tie"]
    assert (judged.items[1].group, judged.items[1].tags, judged.items[0].group) == ("talk", {"topic": "fees"}, "7")
    assert (judged.figures.identical, judged.figures.ties, len(at.bodies)) == (2, 2, 2)
    assert judged.figures.cost == pytest.approx((200 * 5 + 20 * 20) / 1e6)
    again = compared(judge_at(at.url, input_price=5, output_price=20), items).figures
    assert (again.cost, again.cached, again.input_tokens) == (0, 2, 0)
    assert "2 answers from the store" in judge_text(again)
    assert compared(judge_at(at.url), []).figures.items == 0


def test_a_pair_is_asked_again_with_other_tools(
    endpoint: Callable[[Answer], StandIn], judge_at: Callable[..., Judge]
) -> None:
    at = endpoint(better)
    plain = item(1, "of the base 5", "of the checkpoint 9")
    tools = [{"type": "function", "function": {"name": "days"}}]
    with_tools = replace(plain, asked=replace(plain.asked, tools=tools))
    figures = [compared(judge_at(at.url), [each]).figures for each in (plain, with_tools, with_tools)]
    assert [(each.requests, each.cached) for each in figures] == [(2, 0), (2, 0), (0, 2)]


def test_no_more_requests_at_once_than_allowed(
    endpoint: Callable[[Answer], StandIn], judge_at: Callable[..., Judge], capsys: pytest.CaptureFixture[str]
) -> None:
    at = endpoint(better)
    at.pause_s = 0.02
    compared(judge_at(at.url, max_concurrent=3), items_with_a_winner(12, 6))
    assert at.most_at_once == 3
    shown = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert {each["unit"] for each in shown} == {"judgements"}
    assert (shown[-1]["done"], shown[-1]["total"]) == (24, 24)


def test_a_lone_surrogate_breaks_nothing(
    endpoint: Callable[[Answer], StandIn], judge_at: Callable[..., Judge]
) -> None:
    broken = '{"choices": [{"message": {"content": "\\ud800"}}]}'
    at = endpoint(lambda prompt, body: Response(broken, media_type="application/json"))
    judged = compared(judge_at(at.url, max_no_answer=1), [item(0, "\ud800", "x")])
    assert judged.items[0].outcome == "no answer"


def test_an_empty_answer_says_what_may_help(
    endpoint: Callable[[Answer], StandIn], judge_at: Callable[..., Judge]
) -> None:
    at = endpoint(lambda prompt, body: "")
    judged = compared(judge_at(at.url), items_with_a_winner(1, 1))
    assert "may need more evaluate.judge.max_new_tokens" in judged.figures.refused


def test_what_was_answered_before_an_interruption_is_kept(
    endpoint: Callable[[Answer], StandIn], judge_at: Callable[..., Judge], monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*arguments: Any) -> None:
        raise KeyboardInterrupt

    at = endpoint(better)
    with monkeypatch.context() as patch:
        patch.setattr(Progress, "update", interrupted)
        with pytest.raises(KeyboardInterrupt):
            compared(judge_at(at.url, max_concurrent=1), items_with_a_winner(5, 3))
    asked = len(at.bodies)
    assert 1 <= asked < 10
    at.bodies.clear()
    assert compared(judge_at(at.url), items_with_a_winner(5, 3)).figures.cached >= asked - 1
