"""Takes the pictures of docs/page/ anew: `python tests/page/pictures.py`, with the packaged model and its server.

With `--run RUN` that run is served, too, and the pictures of the runs are of it: it has a curve.
"""

import argparse
import io
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

from PIL import Image
from playwright.sync_api import sync_playwright

from rhapsode import storyworld
from rhapsode.packaged.run import packaged_run

FOLDER = Path(__file__).resolve().parents[2] / "docs" / "page"
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-background-networking"]
COLOURS = 256  # in a picture: a third of its size, and nothing that one would see; k-means keeps the paper's colour
NAME = re.compile(r"^\s*[A-Z]\w\w+$")


def take(page: Any, name: str) -> None:
    picture = Image.open(io.BytesIO(page.screenshot())).convert("RGB")
    picture = picture.quantize(COLOURS, Image.Quantize.MAXCOVERAGE, kmeans=3, dither=Image.Dither.NONE)
    FOLDER.mkdir(exist_ok=True)
    picture.save(FOLDER / f"{name}.png", optimize=True)


def opened(browser: Any, url: str, scheme: str, width: int, height: int) -> Any:
    page = browser.new_page(viewport={"width": width, "height": height}, color_scheme=scheme)
    page.goto(url)
    page.wait_for_selector("#stop", state="hidden")
    page.wait_for_selector("#thought .bars button")
    return page


def look_at(page: Any, word: str | re.Pattern[str], kind: str = "span") -> None:
    """Puts the cursor on the last token of the story that has the word, and waits for what is told of it."""
    page.locator(f"#story > {kind}[data-i]", has_text=word).last.click()
    page.mouse.move(0, 0)
    page.evaluate("scrollTo(0, 0)")
    page.get_by_text("tokens can be drawn").wait_for()
    page.wait_for_timeout(600)


def read_in(page: Any, text: str) -> None:
    page.get_by_role("button", name="Edit").click()
    page.locator("#text").fill(text)
    page.get_by_role("button", name="Read it").click()
    page.wait_for_selector("#story .refers")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--run", type=Path)
    run = parser.parse_args().run
    runs = [str(path) for path in (packaged_run(), run) if path]
    server = subprocess.Popen(
        [sys.executable, "-m", "rhapsode", "serve", *runs, "--port", "0"], stdout=subprocess.PIPE, text=True
    )
    assert server.stdout is not None
    url = server.stdout.readline().strip()
    story = min((storyworld.sample(seed) for seed in range(200)), key=lambda each: len(each.text))
    referred = story.labels[-1].right.split()[0]
    try:
        with sync_playwright() as playwright:
            browser = playwright.chromium.launch(executable_path="/usr/bin/chromium", args=FLAGS)
            for scheme in ("light", "dark"):
                page = opened(browser, url, scheme, 1240, 1080)
                page.wait_for_selector("#story .refers")
                look_at(page, NAME, ".refers")
                take(page, f"story-{scheme}")
                read_in(page, story.text)
                look_at(page, referred)
                take(page, f"truth-{scheme}")
                page.get_by_role("link", name="Runs").click()
                page.locator("#view-runs .runs button").last.click()
                page.wait_for_timeout(800)
                take(page, f"runs-{scheme}")
                page.get_by_role("link", name="Lectures").click()
                page.locator("#view-lectures nav a", has_text="unrolled").click()
                page.locator("#view-lectures .figure").focus()
                for _ in range(4):
                    page.keyboard.press("ArrowRight")
                page.mouse.move(0, 0)
                page.evaluate("scrollTo(0, 0)")
                take(page, f"lectures-{scheme}")
                phone = opened(browser, url, scheme, 390, 844)
                read_in(phone, story.text)
                phone.locator("#story > span[data-i]", has_text=referred).last.click()
                phone.wait_for_timeout(1200)
                take(phone, f"phone-{scheme}")
            browser.close()
    finally:
        server.kill()


if __name__ == "__main__":
    main()
