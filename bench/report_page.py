"""Screenshots of the page of `elmoe reproduce`: at 1280 and 390 pixels, light and dark, one per figure.

``python bench/report_page.py reproduce-output/report.html [-o FOLDER]`` opens it in headless Chromium (Playwright,
Debian's chromium) and writes one picture per figure and view. Look at them; the best are in docs/img.
"""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path

from playwright.sync_api import sync_playwright

from harness import ROOT

FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking"]
VIEWS = {
    "desktop-light": {"viewport": {"width": 1280, "height": 900}, "color_scheme": "light"},
    "desktop-dark": {"viewport": {"width": 1280, "height": 900}, "color_scheme": "dark"},
    "phone-light": {"viewport": {"width": 390, "height": 844}, "color_scheme": "light", "device_scale_factor": 2},
    "phone-dark": {"viewport": {"width": 390, "height": 844}, "color_scheme": "dark", "device_scale_factor": 2},
}
DRAWN_MS = 700
"""Until the charts of a card are drawn."""


def main() -> None:
    """Take them."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("page", type=Path)
    parser.add_argument("-o", "--output", type=Path, default=ROOT / "reproduce-output" / "screenshots")
    parser.add_argument("--view", choices=VIEWS, action="append")
    parser.add_argument("--only", help="ids of figures, as table3,fig14")
    arguments = parser.parse_args()
    arguments.output.mkdir(parents=True, exist_ok=True)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=FLAGS)
        for name in arguments.view or VIEWS:
            page = browser.new_context(**VIEWS[name]).new_page()
            page.on("pageerror", lambda error: print("page error:", error))
            page.goto(arguments.page.resolve().as_uri())
            page.wait_for_timeout(DRAWN_MS)
            page.screenshot(path=arguments.output / f"{name}-top.png")
            page.add_style_tag(content=".bar { position: static !important; }")  # not over a card
            cards = page.locator("article.card")
            for index in range(cards.count()):
                card = cards.nth(index)
                identity = card.get_attribute("id")
                if arguments.only and identity not in arguments.only.split(","):
                    continue
                card.scroll_into_view_if_needed()
                page.wait_for_timeout(DRAWN_MS)
                card.screenshot(path=arguments.output / f"{name}-{identity}.png")
            page.close()
        browser.close()


if __name__ == "__main__":
    main()
