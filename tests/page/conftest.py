"""A real browser, and the page to open in it: the offline file of the tiny run."""

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

FLAGS = ["--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking"]
FLAGS += ["--disable-component-update", "--disable-sync"]
AXE = Path(__file__).resolve().parents[2] / ".venv" / "axe" / "node_modules" / "axe-core" / "axe.min.js"
WAIT = 120_000  # milliseconds: to end a hang, not to measure a machine


@pytest.fixture(scope="module")  # while it is there, an event loop runs, and asyncio starts no other
def browser() -> Iterator[Any]:
    playwright = pytest.importorskip("playwright.sync_api", reason="needs Playwright: pip install playwright")
    chromium = shutil.which("chromium")
    if chromium is None:
        pytest.skip("needs /usr/bin/chromium: apt-get install chromium")
    playwright.expect.set_options(timeout=WAIT)
    with playwright.sync_playwright() as started:
        browser = started.chromium.launch(executable_path=chromium, args=FLAGS)
        yield browser
        browser.close()


@pytest.fixture
def open_page(browser: Any) -> Iterator[Any]:
    """open_page(url, **of the context) -> a page that is ready; at the end, nothing must have gone wrong in it."""
    contexts, problems = [], []

    def opened(url: str, offline: bool = False, ready: str = "#thought .bars button", **options: Any) -> Any:
        context = browser.new_context(**{"viewport": {"width": 1280, "height": 900}, "offline": offline, **options})
        context.set_default_timeout(WAIT)
        contexts.append(context)
        page = context.new_page()
        page.on("pageerror", lambda error: problems.append(str(error)))
        page.on("console", lambda message: message.type == "error" and problems.append(message.text))
        page.on("dialog", lambda dialog: problems.append(f"dialog: {dialog.message}"))
        page.expected_problems = problems  # a test that provokes some clears it
        page.goto(url)
        page.wait_for_selector(ready)
        return page

    yield opened
    for context in contexts:
        context.close()
    assert not problems


@pytest.fixture(scope="session")
def offline_file(tiny_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny run as one page."""
    from rhapsode.api import export_html

    file = tmp_path_factory.mktemp("offline") / "page.html"
    export_html(tiny_run, file)
    return file


@pytest.fixture(scope="session")
def axe() -> str:
    """axe-core's source, which `make .venv/axe` gets from npm."""
    file = Path(os.environ.get("RHAPSODE_AXE", AXE))
    if not file.exists():
        pytest.skip("needs axe-core: make .venv/axe")
    return file.read_text(encoding="utf-8")
