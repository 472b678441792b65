"""The chat page in headless Chromium, served by a real endpoint.

Uses Selenium, because Playwright would add Node.js and 160 MB.
"""

import json
import shutil
import string
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from selenium import webdriver
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.remote.webelement import WebElement
from selenium.webdriver.support.ui import WebDriverWait
from starlette.responses import JSONResponse

from models.base.load import load_model, load_tokenizer
from models.chat.knowledge import Passage
from serve.api.routes import create_app
from serve.api.settings import ApiSettings
from serve.engines.torch import TorchEngine

MODEL = "talker"
ADAPTERS = ("shop", "an-adapter-with-a-long-name-that-no-phone-has-room-for")
SWITCHES = (
    "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
    "--disable-component-update --disable-sync"
)


class Rules:
    """In place of `serve.knowledge.retrieval.Knowledge`: two documents about rules."""

    def find(self, texts: list[str]) -> list[Passage]:
        return [Passage("rules.md", "Be kind."), Passage("<b>.md", "No.")] if "rules" in texts[-1] else []


class Front:
    """Middleware before the endpoint that records requests, and requires a key if a test sets one."""

    def __init__(self, app: Any) -> None:
        self.app = app
        self.key: str | None = None
        self.asked: list[dict[str, Any]] = []

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        path = scope.get("path", "")
        authorization = dict(scope.get("headers", ())).get(b"authorization", b"").decode()
        if self.key and path.startswith("/v1/") and authorization != f"Bearer {self.key}":
            error = {"message": f"No such key: {authorization!r}.", "type": "invalid_request_error"}
            await JSONResponse({"error": error}, 401)(scope, receive, send)
            return
        body = bytearray()

        async def remembered() -> Any:
            message = await receive()
            body.extend(message.get("body", b""))
            if body and not message.get("more_body"):
                self.asked.append(json.loads(body))
                body.clear()
            return message

        await self.app(scope, remembered, send)


class Page:
    """The page as a user sees it."""

    def __init__(self, driver: webdriver.Chrome, url: str, front: Front) -> None:
        self.driver, self.url, self.front = driver, url, front

    def open(self) -> None:
        self.driver.get(self.url)
        self.until(lambda: self.one("#model").text != "connecting…")

    def one(self, selector: str) -> WebElement:
        return self.driver.find_element(By.CSS_SELECTOR, selector)

    def all(self, selector: str) -> list[WebElement]:
        return [each for each in self.driver.find_elements(By.CSS_SELECTOR, selector) if each.is_displayed()]

    def texts(self, selector: str) -> list[str]:
        return [each.text for each in self.all(selector)]

    def script(self, code: str, *arguments: Any) -> Any:
        return self.driver.execute_script(code, *arguments)

    def cdp(self, method: str, **params: Any) -> None:
        self.driver.execute_cdp_cmd(method, params)

    def until(self, condition: Callable[[], Any]) -> Any:
        return WebDriverWait(self.driver, 20, 0.02).until(lambda _: condition())

    @property
    def focused(self) -> WebElement:
        return self.driver.switch_to.active_element

    def press(self, *keys: str) -> None:
        for key in keys:
            self.focused.send_keys(key)

    def is_idle(self) -> bool:
        return self.one("main").get_attribute("aria-busy") != "true"

    def send(self, question: str) -> None:
        self.one("#input").send_keys(question + Keys.ENTER)

    def answer(self) -> str:
        """The last reply, once it is complete."""
        self.until(self.is_idle)
        answers: list[str] = self.texts(".answer .text")
        return answers[-1] if answers else ""

    def ask(self, question: str) -> str:
        self.send(question)
        return self.answer()

    def set(self, **fields: Any) -> None:
        self.one("#open-settings").click()
        for name, value in fields.items():
            field = self.one(f"[name={name}]")
            field.clear()
            field.send_keys(str(value))
        self.one("#close-settings").click()


@pytest.fixture(scope="session")
def talker(
    make_loud: Callable[[Path], Any], tiny_llama: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[TorchEngine, Any]]:
    """An engine whose model generates letters without end, with one adapter under two names; and its tokenizer."""
    model, tokenizer = make_loud(tiny_llama), load_tokenizer(tiny_llama)
    is_letter = [token in string.ascii_letters for token in tokenizer.convert_ids_to_tokens(range(len(tokenizer)))]
    model.lm_head.weight.data *= model.lm_head.weight.new_tensor(is_letter)[:, None]
    model.config.max_position_embeddings = 30_000
    release = tmp_path_factory.mktemp("release")
    model.save_pretrained(release)
    tokenizer.save_pretrained(release)
    lora = LoraConfig(init_lora_weights=False, target_modules=["q_proj", "down_proj"])
    get_peft_model(load_model(release, torch.float32), lora).save_pretrained(release / "adapter")
    adapters = dict.fromkeys(ADAPTERS, release / "adapter")
    engine = TorchEngine(release, precision="fp32", max_active=2, num_threads=1, adapters=adapters)
    yield engine, tokenizer
    engine.close()


@pytest.fixture(scope="session")
def driver(tmp_path_factory: pytest.TempPathFactory) -> Iterator[webdriver.Chrome]:
    chromium, driver_path = shutil.which("chromium"), shutil.which("chromedriver")
    if not (chromium and driver_path):
        pytest.skip("no Chromium here; on Debian: apt-get install chromium chromium-driver")
    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    for switch in [*SWITCHES.split(), f"--user-data-dir={tmp_path_factory.mktemp('chromium')}"]:
        options.add_argument(switch)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(options, webdriver.ChromeService(driver_path))
    yield driver
    driver.quit()


@pytest.fixture
def page(
    driver: webdriver.Chrome,
    talker: tuple[TorchEngine, Any],
    serving: Callable[[Any], AbstractContextManager[str]],
) -> Iterator[Page]:
    """The page, opened on a new port, so that the browser has stored nothing for it. Replies have 30 letters by
    default.
    """
    rules: Any = Rules()
    front = Front(create_app(*talker, MODEL, settings=ApiSettings(max_new_tokens=30), knowledge=rules))
    with serving(front) as url:
        page = Page(driver, url, front)
        page.cdp("Emulation.clearDeviceMetricsOverride")
        page.cdp("Emulation.setTouchEmulationEnabled", enabled=False)
        page.cdp("Emulation.setEmulatedMedia", features=[])
        page.open()
        driver.get_log("browser")  # Reading the log clears it.
        yield page
        driver.get("about:blank")
