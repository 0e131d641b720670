"""Screenshots of the chat page at work, for the docs: a desktop in light, a phone in dark.

``python bench/chat_page.py [MODEL]`` starts `elmoe serve`, asks by keyboard in headless Chromium (Playwright, Debian's
chromium) and writes docs/img/chat-page-*.png. Look at them before they are committed.
"""

from __future__ import annotations

import shutil
import subprocess
import sys

from playwright.sync_api import sync_playwright

from harness import ROOT
from server_process import serving

IMAGES = ROOT / "docs" / "img"
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking"]
VIEWS = {
    "desktop": {"viewport": {"width": 1280, "height": 800}, "color_scheme": "light"},
    "phone": {"viewport": {"width": 390, "height": 844}, "color_scheme": "dark", "device_scale_factor": 2},
}
QUESTIONS = ("Write a short story about a dog.", "What happens next?")


def main(model: str = "tiny") -> None:
    """Take them."""
    IMAGES.mkdir(parents=True, exist_ok=True)
    with serving(model, "--mode", "sd") as server, sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=FLAGS)
        for name, options in VIEWS.items():
            page = browser.new_context(**options).new_page()
            page.goto(server.url)
            for number, question in enumerate(QUESTIONS):
                page.fill("#prompt", question)
                page.keyboard.press("Enter")
                page.locator(".facts").nth(number).wait_for(timeout=60_000)
            page.wait_for_timeout(1200)
            page.screenshot(path=IMAGES / f"chat-page-{name}.png", full_page=name == "phone")
        browser.close()


if __name__ == "__main__":
    try:
        main(*sys.argv[1:])
    except subprocess.SubprocessError as error:
        sys.exit(str(error))
