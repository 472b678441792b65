"""The chat page: the requests that it sends, and what it shows of the replies."""

import time
from typing import Any

import pytest
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.support.ui import Select

from serve.api.routes import create_app
from serve.api.settings import ApiSettings
from serve.engines.torch import TorchEngine

MODEL, ADAPTER = "talker", "shop"


def test_a_reply_streams_and_is_announced(page: Any) -> None:
    page.set(max_tokens=300)
    page.send("Hello")
    shown = page.until(lambda: page.texts(".answer .text"))[0]
    assert not page.is_idle()
    assert "is writing" in page.one("[role=status]").get_attribute("textContent")
    answer = page.answer()
    assert answer.startswith(shown)
    assert len(shown) < len(answer) == 300
    assert answer.isalpha()
    assert page.texts(".note") == ["The reply reached its length limit."]
    assert answer in page.one("[role=status]").get_attribute("textContent")
    assert page.texts(".who") == [MODEL]


def test_a_reply_names_its_sources(page: Any) -> None:
    page.ask("What are the rules?")
    assert page.texts(".note") == ["Sources: [1] rules.md, [2] <b>.md. The reply reached its length limit."]


def test_the_next_request_has_the_whole_conversation(page: Any) -> None:
    answer = page.ask("Hello")
    page.ask("And then?")
    assert page.front.asked[-1]["messages"] == [
        {"role": "user", "content": "Hello"},
        {"role": "assistant", "content": answer},
        {"role": "user", "content": "And then?"},
    ]
    page.one("#new").click()
    page.ask("Anew")
    assert [message["content"] for message in page.front.asked[-1]["messages"]] == ["Anew"]


@pytest.mark.parametrize("by", ["button", "key"])
def test_stop_ends_the_reply_here_and_at_the_engine(page: Any, talker: tuple[TorchEngine, Any], by: str) -> None:
    page.set(max_tokens=20_000)
    page.send("Hello")
    page.until(lambda: len("".join(page.texts(".answer .text"))) > 5)
    page.one("#stop").click() if by == "button" else page.press(Keys.ESCAPE)
    answer = page.answer()
    assert page.texts(".note") == ["Stopped."]
    page.until(lambda: talker[0].health().num_active == 0)
    time.sleep(0.2)
    assert page.texts(".answer .text") == [answer], "nothing more comes"
    page.set(max_tokens=5)
    page.ask("Next")
    assert page.front.asked[-1]["messages"][1] == {"role": "assistant", "content": answer}


def test_regenerate_sends_the_same_request_again(page: Any) -> None:
    first = page.ask("Hello")
    page.one(".again").click()
    assert page.answer() != first
    assert len(page.texts(".answer .text")) == 1
    assert page.front.asked[0] == page.front.asked[1]


def test_edit_and_resend_drops_what_came_after(page: Any) -> None:
    page.ask("One")
    page.ask("Two")
    page.all(".edit")[0].click()
    assert page.texts(".rewrite .hint") == ["Sending it removes the turns after it."]
    page.press(" and a half", Keys.ENTER)
    page.until(page.is_idle)
    assert page.texts(".question .text") == ["One and a half"]
    assert [each["content"] for each in page.front.asked[-1]["messages"]] == ["One and a half"]
    page.one(".edit").click()
    page.press("!", Keys.ESCAPE)
    assert page.texts(".question .text") == ["One and a half"]
    assert len(page.front.asked) == 3


def test_settings_reach_the_request_and_stay(page: Any) -> None:
    page.ask("Hello")
    usual = {"model": MODEL, "stream": True, "temperature": 0.7, "top_p": 0.9}
    assert {**page.front.asked[0], "messages": None} == {**usual, "messages": None}
    wanted = {"temperature": 0.5, "top_p": 1, "top_k": 5, "max_tokens": 12, "seed": 7}
    wanted |= {"presence_penalty": -0.5, "frequency_penalty": 0.5, "repetition_penalty": 1.1}
    page.set(system="Be brief.", **wanted)
    page.open()
    answer = page.ask("Hello")
    assert len(answer) == 12
    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hello"}]
    assert page.front.asked[1] == {**usual, **wanted, "messages": messages}
    page.one(".again").click()
    assert page.answer() == answer, "the seed repeats it"
    page.one("#open-settings").click()
    page.one("[type=reset]").click()
    page.one("#close-settings").click()
    page.ask("Again")
    assert {**page.front.asked[-1], "messages": None} == {**usual, "messages": None}


def test_a_setting_that_is_wrong_is_shown_and_nothing_is_sent(page: Any) -> None:
    page.set(temperature=3)
    page.send("Hello")
    assert page.one("#settings").is_displayed()
    assert page.focused.get_attribute("name") == "temperature"
    assert page.front.asked == []
    page.press(Keys.ESCAPE)
    assert page.one("#input").get_attribute("value") == "Hello"


def test_the_model_picker_lists_models_and_adapters(page: Any) -> None:
    options = page.script("return [...document.querySelectorAll('#model option')].map(each => each.value)")
    assert options[:2] == [MODEL, ADAPTER]
    assert page.one("#model optgroup").get_attribute("label") == f"Adapters of {MODEL}"
    page.set(temperature=0)
    answer = page.ask("Hello")
    Select(page.one("#model")).select_by_visible_text(ADAPTER)
    page.one(".again").click()
    assert page.answer() != answer, "the adapter's"
    assert [body["model"] for body in page.front.asked] == [MODEL, ADAPTER]
    assert page.texts(".who") == [ADAPTER]
    page.open()
    assert page.one("#model").get_property("value") == ADAPTER, "it is kept"


def test_a_key_is_asked_for_sent_and_kept(page: Any) -> None:
    page.front.key = "sk-1"
    page.open()
    assert page.one("#key-why").text == "No such key: ''."
    page.press("sk-0", Keys.ENTER)
    page.until(lambda: page.one("#key-why").text == "No such key: 'Bearer sk-0'.")
    page.press("sk-1", Keys.ENTER)
    page.until(lambda: page.one("#model").get_property("value") == MODEL)
    page.ask("Hello")
    page.open()
    assert not page.one("#key").is_displayed()
    page.front.key = "sk-2"
    page.send("Hello")
    page.until(lambda: page.one("#key").is_displayed())
    assert page.texts(".answer .error") == ["No such key: 'Bearer sk-1'."]
    page.press("sk-2", Keys.ENTER)
    page.until(lambda: page.is_idle() and page.texts(".answer .text"))
    assert page.texts(".question .text") == ["Hello"], "asked again by itself"
    assert not page.all(".answer .error")


def test_errors_are_what_the_api_said(page: Any, talker: tuple[TorchEngine, Any]) -> None:
    answer = page.ask("Hello")
    page.set(max_tokens=29_999)
    page.one(".again").click()
    assert page.answer() == answer, "the one that there was is kept"
    assert "max_tokens asks for 29999" in page.texts(".answer .error")[0]
    page.front.app = create_app(*talker, MODEL, settings=ApiSettings(max_seconds=1))
    page.set(max_tokens=20_000)
    written = page.ask("Until the deadline")
    assert "1 second" in page.texts(".answer .error")[-1]
    assert len(written) > 10
    assert page.one(".answer .error").get_attribute("role") == "alert"


def test_a_question_without_an_answer_is_left_out_of_later_requests(page: Any) -> None:
    page.set(max_tokens=29_999)
    page.send("Unanswered")
    page.until(lambda: page.texts(".answer .error"))
    assert page.texts(".again") == ["Try again"]
    page.set(max_tokens=5)
    page.ask("Hello")
    assert page.front.asked[-1]["messages"] == [{"role": "user", "content": "Hello"}]
