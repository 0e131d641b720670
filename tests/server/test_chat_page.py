"""The chat page in headless Chromium: it streams, marks drafted tokens, fits a phone, and is used by keyboard alone."""

from __future__ import annotations

import re

import pytest
from random_server import open_engine, serving

from chromium import NEEDS_CHROMIUM, launched
from elmoe.engine.controller import Mode, Speculation

pytestmark = [
    pytest.mark.verify,
    pytest.mark.filterwarnings("default"),
    *NEEDS_CHROMIUM,
]
PHONE = {"width": 375, "height": 700}


@pytest.fixture(scope="module")
def url(model_folder):
    engine = open_engine(model_folder("tools"), speculation=Speculation(mode=Mode.SD))
    with serving(engine) as served:
        yield served.url


@pytest.fixture(scope="module")
def browser():
    with launched() as browser:
        yield browser


@pytest.fixture
def page(browser, url, request):
    """A page without errors; ``request.param``: options of its context."""
    context = browser.new_context(**getattr(request, "param", {}))
    page, problems = context.new_page(), []
    page.problems = problems
    page.on("pageerror", lambda error: problems.append(str(error)))
    page.on("console", lambda message: problems.append(message.text) if message.type == "error" else None)
    page.on("request", lambda asked: problems.append(asked.url) if not asked.url.startswith(url) else None)
    page.goto(url)
    yield page
    context.close()
    assert problems == [], "no errors, and nothing from elsewhere"


def ask_by_keyboard(page, text):
    page.focus("#prompt")
    page.keyboard.type(text)
    page.keyboard.press("Enter")


def test_a_chat_by_keyboard_with_the_live_view(page):
    page.get_by_text("connected", exact=True).wait_for()
    assert page.text_content("#model") == "random"
    ask_by_keyboard(page, "Hello <b>there</b>")
    page.wait_for_selector(".message.assistant .facts", timeout=20_000)
    assert page.text_content(".message.user .body") == "Hello <b>there</b>", "what a user writes is text, not HTML"
    drafted, by_target = page.locator(".piece.drafted"), page.locator(".message .piece:not(.drafted)")
    assert drafted.count() > 3
    assert by_target.count() > 3
    plain = page.evaluate("getComputedStyle(document.querySelector('.message .piece:not(.drafted)')).backgroundColor")
    marked = page.evaluate("getComputedStyle(document.querySelector('.message .piece.drafted')).backgroundColor")
    assert plain != marked
    facts = page.text_content(".message .facts")
    total, by_draft, rest = map(int, re.findall(r"\d+", facts)[:3])
    assert total == by_draft + rest
    assert page.text_content("#accepted").endswith(" %")
    page.locator("#speed path[d*=L]").wait_for(state="attached")
    assert page.get_attribute("#pool", "aria-label") == "Expert pool: 2 layers, 4 of 8 experts each"
    assert page.evaluate("document.getElementById('pool').width") > 8
    page.click("#settings summary")
    page.uncheck("#colours")
    assert page.evaluate("getComputedStyle(document.querySelector('.message .piece.drafted')).backgroundColor") == plain


def test_escape_stops_an_answer_and_a_new_chat_is_empty(page):
    page.click("#settings summary")
    page.fill("#max_tokens", "900")
    ask_by_keyboard(page, "Go on for ever")
    page.wait_for_selector(".piece")
    page.keyboard.press("Escape")
    page.locator("#stop:disabled").wait_for()
    assert page.locator(".message.error").count() == 0
    page.click("#fresh")
    assert page.locator(".message").count() == 0


def test_what_the_server_refuses_is_shown(page):
    page.click("#settings summary")
    page.evaluate("document.getElementById('top_p').value = 7")
    ask_by_keyboard(page, "Hi")
    page.wait_for_selector(".message.error")
    assert "top_p must be in (0, 1], not 7" in page.text_content(".message.error")
    assert len(page.problems) == 1, "the browser itself reports the 400"
    page.problems.clear()


@pytest.mark.parametrize("page", [{"viewport": PHONE, "has_touch": True}], indirect=True)
def test_it_fits_a_phone(page):
    ask_by_keyboard(page, "A word that is as long as " + "m" * 200)
    page.wait_for_selector(".facts", timeout=20_000)
    assert page.evaluate("document.documentElement.scrollWidth") <= PHONE["width"]
    for name in ("#send", "#stop", "#fresh", "#prompt"):
        assert page.locator(name).bounding_box()["height"] >= 40, "a finger's width"


@pytest.mark.parametrize("page", [{"color_scheme": "dark"}, {"color_scheme": "light"}], indirect=True, ids=str)
def test_light_and_dark_have_contrast(page):
    def luminance(color):
        channels = [int(value) / 255 for value in re.findall(r"\d+", color)[:3]]
        linear = [c / 12.92 if c <= 0.03928 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    back = luminance(page.evaluate("getComputedStyle(document.body).backgroundColor"))
    for selector in ("body", "#state", "#legend", "dt", "figcaption"):
        color = page.evaluate(f"getComputedStyle(document.querySelector('{selector}')).color")
        high, low = sorted((luminance(color), back), reverse=True)
        assert (high + 0.05) / (low + 0.05) >= 4.5, selector


def test_every_control_has_a_name_and_is_reached_by_tab(page):
    page.click("#settings summary")
    page.evaluate("document.activeElement.blur()")
    reached = set()
    for _ in range(30):
        page.keyboard.press("Tab")
        reached.add(page.evaluate("document.activeElement.id"))
    assert {"prompt", "send", "fresh", "mode", "width", "depth", "temperature", "key", "system", "log"} <= reached
    unnamed = page.evaluate(
        "[...document.querySelectorAll('input, select, textarea')].filter(e => !e.labels.length).map(e => e.id)"
    )
    assert unnamed == []
