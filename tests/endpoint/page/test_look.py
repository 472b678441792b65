"""The chat page's accessibility (keyboard, screen readers, phones, dark mode) and its content security policy."""

import re
from typing import Any

import pytest
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.support.ui import Select


def test_the_keyboard_alone_is_enough(page: Any) -> None:
    page.press("Hello", Keys.SHIFT + Keys.ENTER, "you", Keys.ENTER)
    page.until(page.is_idle)
    assert page.texts(".question .text") == ["Hello\nyou"]
    page.press(Keys.SHIFT + Keys.TAB)
    assert page.focused.text == "Regenerate"
    page.press(Keys.ENTER)
    page.until(lambda: len(page.front.asked) == 2 and page.is_idle())
    assert page.focused == page.one("#input")
    page.press(Keys.SHIFT + Keys.TAB, Keys.SHIFT + Keys.TAB)
    assert page.focused.text == "Edit"
    page.press(Keys.ENTER, "!", Keys.ENTER)
    page.until(lambda: page.texts(".question .text") == ["Hello\nyou!"] and page.is_idle())
    reached = []
    for _ in range(5):
        page.press(Keys.SHIFT + Keys.TAB)
        reached.append(page.focused.accessible_name)
        assert page.focused.value_of_css_property("outline-style") == "solid"
    assert reached == ["Regenerate", "Edit", "Conversation", "New chat", "Settings"]
    page.press(Keys.ENTER)
    assert page.one("#settings").is_displayed()
    page.press(Keys.ESCAPE)
    assert page.focused == page.one("#open-settings")


def test_everything_has_a_name(page: Any) -> None:
    page.ask("Hello")
    page.script("document.querySelectorAll('[hidden]').forEach(each => { each.hidden = false })")
    page.script("document.querySelectorAll('dialog').forEach(each => each.show())")
    controls = page.driver.find_elements("css selector", "button, input, select, textarea, dialog, fieldset, main")
    assert len(controls) > 25
    assert [each.get_attribute("outerHTML") for each in controls if not each.accessible_name] == []


@pytest.mark.parametrize("width", [320, 390])
def test_a_phone_needs_no_sideways_scrolling(page: Any, width: int) -> None:
    page.cdp("Emulation.setDeviceMetricsOverride", width=width, height=700, deviceScaleFactor=2, mobile=True)
    page.cdp("Emulation.setTouchEmulationEnabled", enabled=True)
    page.open()
    Select(page.one("#model")).select_by_index(2)
    page.one("#input").send_keys("Hello" + "o" * 200 + Keys.ENTER)
    assert page.one("#input").get_property("value").endswith("\n"), "a phone has no other key for a new line"
    page.one("#send").click()
    page.until(page.is_idle)
    page.one(".edit").click()

    def assert_fits() -> None:
        assert page.script("return document.documentElement.scrollWidth") <= width
        wide = "return [...document.querySelectorAll('body *')].filter(e => e.scrollWidth > e.clientWidth + 1"
        wide += " && ['auto', 'scroll'].includes(getComputedStyle(e).overflowX)).map(e => e.outerHTML)"
        assert page.script(wide) == []
        for control in page.all("button, input:not([type=radio]), select, textarea"):
            box = control.rect
            assert box["x"] >= 0
            assert box["x"] + box["width"] <= width, control.get_attribute("outerHTML")
            assert box["height"] >= 40, control.get_attribute("outerHTML")

    assert_fits()
    page.one("#open-settings").click()
    assert_fits()


def test_dark_and_light_can_both_be_read(page: Any) -> None:
    page.set(max_tokens=29_999)
    page.send("Hello")
    page.until(lambda: page.texts(".answer .error"))
    page.set(max_tokens=5)
    page.ask("Hello")
    for system in ("light", "dark"):
        page.cdp("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": system}])
        for chosen in ("system", "light", "dark"):
            page.one("#open-settings").click()
            page.script("document.querySelector(`[name=theme][value=${arguments[0]}]`).click()", chosen)
            page.one("#close-settings").click()
            is_dark = (system if chosen == "system" else chosen) == "dark"
            assert (luminance(page, "body", "background-color") < 0.5) == is_dark
            pairs = [("body", "body"), (".who", "body"), ("#send", "#send"), (".answer .error", ".answer .error")]
            pairs += [(".question .text", ".question .text"), ("footer .hint", "body"), (".edit", "body")]
            for ink, ground in pairs:
                assert contrast(page, ink, ground) >= 4.5, (ink, chosen, system)


def luminance(page: Any, selector: str, which: str) -> float:
    """Relative luminance, as WCAG 2.2 defines it."""
    red, green, blue = map(float, re.findall(r"[\d.]+", page.one(selector).value_of_css_property(which))[:3])
    shares = [red / 255, green / 255, blue / 255]
    linear = [share / 12.92 if share <= 0.04045 else ((share + 0.055) / 1.055) ** 2.4 for share in shares]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(page: Any, ink: str, ground: str) -> float:
    low, high = sorted([luminance(page, ink, "color"), luminance(page, ground, "background-color")])
    return (high + 0.05) / (low + 0.05)


def test_nothing_comes_from_elsewhere_and_no_other_script_runs(page: Any) -> None:
    page.ask("Hello <img src=x onerror='document.title = 1'>")
    loaded = page.script("return performance.getEntriesByType('resource').map(each => each.name)")
    assert loaded
    assert all(name.startswith((page.url, "data:")) for name in loaded)
    assert page.driver.get_log("browser") == []
    page.script(
        "const s = document.createElement('script'); s.textContent = 'document.title = 2'; document.body.append(s)"
    )
    page.script("document.body.setAttribute('style', 'color: red')")
    assert page.driver.title == "talker · Rayconteur"
    assert page.one("body").value_of_css_property("color") != "rgba(255, 0, 0, 1)"
    assert len(page.driver.get_log("browser")) == 2
