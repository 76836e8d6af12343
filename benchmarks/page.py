"""How fast does a browser write, beside this project's command line before its decoding engine?

    python benchmarks/page.py                   a minute or two; writes benchmarks/results/page.json
    python benchmarks/page.py --quick           one short round, printed only

The same random weights, made as benchmarks/decoding.py makes them, packed into the offline page (int8): Chromium opens
it from the disk, writes at temperature 0.8, and the time runs from the first token on the page to the last, drawing it
included. `before` is `sample.write` of commit 02642c6. Ratios are made within a round; the bar is half.
"""

import json
import statistics
import tempfile
from pathlib import Path
from typing import Any

import safetensors.torch
from decoding import CONFIGS, asked_for, contenders, prepare
from report import about, write

from rhapsode.export.html import offline_page
from rhapsode.export.network import packed_network
from rhapsode.export.spelling import description
from rhapsode.model import build_model
from rhapsode.tokenizer import Tokenizer

MODELS = ("plain", "coffee-before")
BAR = 0.5
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-background-networking"]
WATCH = """
window.seen = [];
new MutationObserver(() => window.seen.push([performance.now(), document.querySelectorAll("#story > span").length]))
  .observe(document.getElementById("story"), { childList: true });
"""


def page_of(folder: Path, name: str) -> Path:
    """The offline page of a model that `prepare` put into the folder."""
    network = build_model(CONFIGS[name], seed=0)
    network.load_state_dict(safetensors.torch.load_file(folder / f"{name}.safetensors"))
    spelling = description(Tokenizer.load(folder / "tokenizer"))
    about_model = {"id": name, "name": name, "parameters": 0, "storyworld": False, "end": "</s>", "sample": [5]}
    file = folder / f"{name}.html"
    file.write_text(offline_page(packed_network(network), spelling, about_model), encoding="utf-8")
    return file


def written_by_page(browser: Any, file: Path, tokens: int) -> float:
    """Tokens per second of the page, from the first token that stands there to the last."""
    page = browser.new_page()
    page.goto(file.as_uri())
    page.wait_for_selector("#thought .bars button")
    page.locator("#thought details").evaluate("node => { node.open = true; }")
    page.locator("#dial-max_tokens").fill(str(tokens))
    page.evaluate(WATCH)
    page.locator("#prompt").press("Enter")
    page.wait_for_selector("#stop:not([hidden])")
    page.wait_for_selector("#stop", state="hidden", timeout=120_000)
    seen = page.evaluate("window.seen.filter(([, count]) => count > 20)")
    page.close()
    (first, least), (last, most) = seen[0], seen[-1]
    return (most - least) / (last - first) * 1000


def measure(rounds: int, tokens: int, commit: str) -> dict[str, Any]:
    """The whole result as JSON-ready values."""
    from playwright.sync_api import sync_playwright

    paces: dict[str, dict[str, list[float]]] = {name: {"page": [], "before": []} for name in MODELS}
    with tempfile.TemporaryDirectory() as temporary, sync_playwright() as playwright:
        folder = Path(temporary)
        prepare(folder)
        files = {name: page_of(folder, name) for name in MODELS}
        browser = playwright.chromium.launch(executable_path="/usr/bin/chromium", args=FLAGS)
        version = browser.version
        with contenders(folder, commit) as found:
            for round_ in range(rounds + 1):  # the first is to warm up
                for name in MODELS:
                    pace = {"page": written_by_page(browser, files[name], tokens)}
                    if "before" in found:
                        pace["before"] = tokens / found["before"].turn(name, 1, tokens)["seconds"]
                    for who, value in pace.items():
                        if round_:
                            paces[name][who].append(value)
        browser.close()
    results = []
    for name, measured in paces.items():
        ratios = [page / before for page, before in zip(measured["page"], measured["before"], strict=False)]
        ratio = statistics.median(ratios) if ratios else None
        medians = {who: round(statistics.median(values)) for who, values in measured.items() if values}
        reached = None if ratio is None else ratio >= BAR
        results.append({"model": name, "tokens_per_second": medians, "page_over_before": ratio, "reached": reached})
    return {"format_version": 1, **about(), "chromium": version, "rounds": rounds, "bar": BAR, "models": results}


def main() -> None:
    arguments = asked_for(__doc__, 5)
    rounds, tokens = (1, 100) if arguments.quick else (arguments.rounds, 510)
    result = measure(rounds, tokens, arguments.before)
    if not arguments.quick:
        write("page", result)
    for row in result["models"]:
        paces = ", ".join(f"{who} {pace:,} tokens/s" for who, pace in row["tokens_per_second"].items())
        print(f"{row['model']}: {paces}; ratio {row['page_over_before'] or float('nan'):.2f}, bar {BAR}")
    print(json.dumps(result, ensure_ascii=False))


if __name__ == "__main__":
    main()
