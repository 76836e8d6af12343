"""A browser that opens offline pages and says what a reader sees: a file's name per line on standard input, JSON back.

In a process of its own, since Playwright keeps an event loop for itself.
"""

import json
import shutil
import subprocess
import sys
import tempfile
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any

from harness import NotHere

FLAGS = ["--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking"]
SETTLED = "#thought .chart[aria-label*='can be drawn'], #notice:not([hidden])"  # the chart is what comes last
LONGEST_SECONDS = 120.0  # that an intact page may take
SECONDS = 2.0  # that any page has, and then as long as an intact one takes that is opened after it
AFTER_AN_ERROR = 1.0  # seconds that a page has, of which a script has failed, to say so
SEEN = """() => ({
  story: document.querySelector("#story")?.textContent ?? null,
  thought: document.querySelector("#thought")?.textContent ?? null,
  model: document.querySelector("#model")?.textContent ?? null,
  notice: document.querySelector("#notice:not([hidden])")?.textContent ?? null,
  waits: document.querySelector("#model")?.textContent.startsWith("Loading") ?? false,
  all: document.body?.innerText ?? "",
})"""
NOT_STARTED = "the page has not started"
NOT_A_PAGE = "text, but no page of ours, is shown"


@cache
def _browser() -> "subprocess.Popen[str]":
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    child = subprocess.Popen([sys.executable, __file__], **pipes)  # type: ignore[call-overload]
    import atexit

    atexit.register(child.kill)
    return child


def seen(page: Path) -> dict[str, Any]:
    """What stands on an offline page; raises ValueError with the message where it says that something is wrong, and
    NotHere where there is no browser."""
    try:
        import playwright.sync_api  # noqa: F401
    except ImportError:
        raise NotHere("needs Playwright for Python") from None
    if shutil.which("chromium") is None:
        raise NotHere("needs /usr/bin/chromium")
    child = _browser()
    assert child.stdin is not None
    assert child.stdout is not None
    child.stdin.write(f"{page}\n")
    child.stdin.flush()
    found = json.loads(child.stdout.readline())
    text, waits = found.pop("all"), found.pop("waits")
    if found["notice"]:
        raise ValueError(f"{page}: {' '.join(found['notice'].split())}")
    if text.strip() and found["model"] is None:
        raise ValueError(f"{page}: {NOT_A_PAGE}")
    if waits or not text.strip():
        raise ValueError(f"{page}: {NOT_STARTED if text.strip() else 'an empty page'}")
    return found


def main() -> None:
    """The first page is intact."""
    from playwright.sync_api import Error as PlaywrightError
    from playwright.sync_api import TimeoutError as TooLong
    from playwright.sync_api import sync_playwright

    def settles(page: Any, seconds: float) -> bool:
        with suppress(TooLong):
            page.wait_for_selector(SETTLED, state="attached", timeout=1000 * seconds)
            return True
        return False

    with sync_playwright() as started, tempfile.TemporaryDirectory(prefix="rhapsode-page-") as folder:
        browser = started.chromium.launch(executable_path=shutil.which("chromium"), args=FLAGS)
        context, intact = browser.new_context(offline=True), Path(folder) / "intact.html"
        for line in sys.stdin:
            page, errors = context.new_page(), []
            page.on("pageerror", lambda error, errors=errors: errors.append(error))
            file = Path(line.strip())
            try:
                page.goto(file.as_uri(), timeout=1000 * LONGEST_SECONDS)
                if not intact.exists():
                    settles(page, LONGEST_SECONDS)
                    shutil.copy(file, intact)
                elif not settles(page, AFTER_AN_ERROR if errors else SECONDS) and not errors:
                    other = context.new_page()
                    other.goto(intact.as_uri(), timeout=1000 * LONGEST_SECONDS)
                    settles(other, LONGEST_SECONDS)
                    other.close()
                found = page.evaluate(SEEN)
            except PlaywrightError as error:  # what is no page any more, the browser itself refuses
                found = {"notice": f"the browser does not open it: {error}", "waits": False, "all": ""}
            print(json.dumps(found), flush=True)
            page.close()


if __name__ == "__main__":
    main()
