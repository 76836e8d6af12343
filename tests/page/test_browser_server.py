"""The page against a server in Chromium: streams that break, the truth beside the model's thought, runs."""

import json
import re
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import asdict
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from test_browser_offline import settle, text_of, violations, write, written

from rhapsode import storyworld
from rhapsode.model import ModelConfig, build_model
from rhapsode.packaged.run import packaged_run
from rhapsode.run import Run

pytest.importorskip("uvicorn", reason="needs the extra serve")
httpx = pytest.importorskip("httpx", reason="needs the extra dev")


class Server:
    """A server of its own process, which can be killed and started again on the same port."""

    def __init__(self, run: Path, port: int = 0, *options: str) -> None:
        command = [sys.executable, "-m", "rhapsode", "serve", str(run), "--port", str(port), *options]
        self.run, self.process = run, subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        assert self.process.stdout is not None
        self.url = self.process.stdout.readline().strip()
        assert self.url.startswith("http://127.0.0.1:")

    def again(self) -> "Server":
        return Server(self.run, int(self.url.rpartition(":")[2]))

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()


@pytest.fixture(scope="session")
def storyteller(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of a tiny model on storyworld, trained for a few steps."""
    import rhapsode

    path = tmp_path_factory.mktemp("storyteller") / "tiny"
    sizes = {"embed_dim": 16, "hidden_dim": 24, "key_dim": 8, "value_dim": 8, "pair_embeddings": 64}
    rhapsode.train("storyworld:200", preset="minute", sequences=400, model=sizes, vocab_size=300, threads=1, out=path)
    return path


@pytest.fixture(scope="session")
def slow_writer(tmp_path_factory: pytest.TempPathFactory, small: Any) -> Path:
    """A run of a model that was never trained, large enough to write for seconds."""
    sizes: dict[str, Any] = {"embed_dim": 512, "hidden_dim": 1024, "num_layers": 4, "feed_forward": 4}
    config = ModelConfig(small.tokenizer.vocab_size, "stacked", attention="none", **sizes)
    about = {"model": asdict(config), "tokenizer": small.tokenizer.fingerprint}
    path = tmp_path_factory.mktemp("slow") / "slow"
    Run.create(path, about, small.tokenizer, build_model(config, seed=1))
    return path


@pytest.fixture(scope="module")
def server(storyteller: Path) -> Iterator[Server]:
    started = Server(storyteller)
    yield started
    started.kill()


def test_a_server_that_stops_in_the_middle(open_page: Any, slow_writer: Path) -> None:
    """Would catch a Stop that goes on writing; a page that waits for ever for a server that is gone, loses what was
    written, or cannot go on where it was."""
    server = Server(slow_writer)
    page = open_page(server.url)
    written(page)
    settle(page, max_tokens=1000, temperature=0)
    page.get_by_label("Begin a story").fill("Twice")
    page.keyboard.press("Enter")
    page.wait_for_selector("#story > span[data-i='9']")
    page.get_by_role("button", name="Stop").click()
    written(page)
    assert page.locator("#story > span").count() < 1000
    page.get_by_label("Begin a story").fill("Once upon a time")
    page.get_by_role("button", name="Write", exact=True).click()
    page.locator("#branches .walk[aria-current=true]", has_text="Once upon").wait_for()
    page.wait_for_selector("#story > span[data-i='12']")
    server.kill()
    page.get_by_role("button", name="Try again").wait_for()
    assert "The server has stopped answering" in page.locator("#notice").text_content()
    kept = text_of(page)
    assert kept.startswith("Once upon a time")
    again = server.again()
    try:
        settle(page, max_tokens=10)
        page.get_by_role("button", name="Try again").click()
        written(page)
        page.locator("#notice").wait_for(state="hidden")
        assert text_of(page).startswith(kept)
        assert len(text_of(page)) > len(kept)
    finally:
        again.kill()
    page.close()
    page.expected_problems.clear()


def test_a_server_that_wants_a_key(open_page: Any, storyteller: Path, tmp_path: Path) -> None:
    """Would catch a page that cannot be used where a key was set."""
    (tmp_path / "key").write_text("a secret\n")
    server = Server(storyteller, 0, "--api-key", str(tmp_path / "key"))
    try:
        page = open_page(server.url, ready="#ask-key[open]")
        page.locator("#key").fill("a secret")
        page.get_by_role("button", name="Use it").click()
        page.wait_for_selector("#thought .bars button")
        assert page.locator("#ask-key[open]").count() == 0
    finally:
        server.kill()
    page.close()
    page.expected_problems.clear()


def test_the_truth(open_page: Any, server: Server) -> None:
    """Would catch a truth of another place, references that point elsewhere, a departure that is not said."""
    story = storyworld.sample(12)
    page = open_page(server.url)
    written(page)
    page.get_by_role("button", name="Edit").click()
    page.locator("#text").fill(story.text)
    page.get_by_role("button", name="Read it").click()
    page.wait_for_selector("#story .refers")
    page.locator("#colour").select_option("excess")
    page.locator("#story > span[data-i='0']").click()
    page.wait_for_selector("#thought .bar.true")
    assert re.search(r"The model wastes \d+\.\d\d bits here", page.locator("#thought").text_content())
    label = story.labels[-1]
    spans = page.locator("#story > span[data-i]:not(.start, .blank)").all_text_contents()
    ends = [sum(map(len, spans[: i + 1])) for i in range(len(spans))]
    place = next(i for i, end in enumerate(ends) if end > label.start)
    page.locator(f"#story > span[data-i='{place}']").click()
    page.get_by_text(f"“{label.right}” was told {label.distance} words before").wait_for()
    assert page.locator("#lines .true").count() >= 1

    write(page, "Zebras")
    page.wait_for_selector("#story .departs")
    page.locator("#story > span.blank").click()
    page.get_by_text("There is no truth here").wait_for()


def test_runs(open_page: Any, server: Server, axe: str) -> None:
    """Would catch a curve without a run's losses, and two writers that write as one."""
    page = open_page(server.url)
    written(page)
    page.get_by_role("link", name="Runs").click()
    page.wait_for_selector("#view-runs .plot path")
    assert "validation" in page.locator("#view-runs .plot").get_attribute("aria-label")
    page.locator("#view-runs details").evaluate("node => { node.open = true; }")
    assert page.get_by_role("row", name="embed_dim 16").count() == 1
    page.locator("#view-runs form button").click()
    page.locator("#view-runs form + .columns .number", has_text="bits a token").nth(1).wait_for()
    assert violations(page, axe) == []
    page.set_viewport_size({"width": 360, "height": 740})
    assert page.evaluate("document.documentElement.scrollWidth") <= 360


def look_at_a_copy(page: Any) -> None:
    """What was copied bends below the text and what was looked at above it: both are seen where they are the same."""
    story = min((storyworld.sample(seed) for seed in range(50)), key=lambda each: len(each.text))
    page.get_by_role("button", name="Edit").click()
    page.locator("#text").fill(story.text)
    page.get_by_role("button", name="Read it").click()
    page.wait_for_selector("#story .refers")
    page.locator("#story .refers", has_text=re.compile(r"^\s*[A-Z]\w\w+$")).last.click()
    page.wait_for_selector("#lines .copied")
    for kind, is_beyond in (("copied", max), ("seen", min)):
        for path in page.locator(f"#lines .{kind}").all():
            ys = [float(y) for y in re.findall(r",(-?[\d.]+)", path.get_attribute("d"))]
            assert is_beyond(ys) == ys[1] == ys[2]


def test_a_first_visit_and_a_run_that_trains(open_page: Any, storyteller: Path, tmp_path: Path) -> None:
    """Would catch a first story that breaks off or that is not of the model inside the package, and a curve, samples
    and a state that stand still while the run that they are of trains on."""
    path = tmp_path / "trains"
    shutil.copytree(storyteller, path)
    server = Server(packaged_run(), 0, str(path))
    try:
        page = open_page(server.url)
        written(page)
        page.wait_for_selector("#story .end")
        assert page.locator("#continue").text_content() == "The story has ended"
        page.locator("#thought .bars .came").wait_for()
        assert page.locator("#thought .bars .came").count() == 1  # the panel tells of a word, not of what comes next
        page.locator("#branches .walk").click()
        page.wait_for_selector("#story .end.here")
        look_at_a_copy(page)
        page.get_by_role("link", name="Runs").click()
        page.get_by_text("without a record of its training").wait_for()
        run = Run.open(path)
        with run.lock():
            page.get_by_role("link", name="Lectures").click()
            page.get_by_role("link", name="Runs").click()
            page.get_by_role("button", name="trains").click()
            row = page.locator("#view-runs tr", has_text="trains")
            row.get_by_text("training").wait_for()
            before = page.locator("#view-runs .plot").get_attribute("aria-label")
            last = run.metrics()[-1]
            line = {
                **last,
                "event": "valid",
                "tokens": last["tokens"] + 4096,
                "valid_loss": 0.125,
                "bits_per_byte": 0.1,
            }
            with run.metrics_path.open("a") as metrics, run.log_path.open("a") as log:
                metrics.write(json.dumps(line) + "\n")
                log.write("step 9,999 of 10,000: train 0.2, valid 0.125\n    Once upon a time a new sample came.\n")
            page.get_by_text("Once upon a time a new sample came.").wait_for()
            row.get_by_text("0.1250").wait_for()
            after = page.locator("#view-runs .plot").get_attribute("aria-label")
            assert before != after
            assert "validation 0.125 at last" in after
        row.get_by_text("done").wait_for()
    finally:
        server.kill()
    page.close()
    page.expected_problems.clear()


ELSEWHERE = """async (server) => {
  const body = '{"prompt": "Once", "max_tokens": 8}', asked = `${server}/v1/completions`, found = {};
  const tries = {
    json: () => fetch(asked, { method: "POST", headers: { "Content-Type": "application/json" }, body }),
    text: () => fetch(asked, { method: "POST", body }),
    blob: () => fetch(asked, { method: "POST", body: new Blob([body]) }),
    models: () => fetch(`${server}/v1/models`),
    blind: () => fetch(asked, { method: "POST", mode: "no-cors", body: new Blob([body]) }),
  };
  for (const [name, attempt] of Object.entries(tries))
    found[name] = await attempt().then(
      async (answer) => `${answer.type} ${await answer.text()}`,
      (error) => error.name,
    );
  return found;
}"""


def test_a_page_of_another_origin_gets_nothing(open_page: Any, server: Server) -> None:
    """Would catch any page in the same browser that reads this server's answers, or has it write texts unseen."""

    class Blank(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.end_headers()
            self.wfile.write(b"<!doctype html><p id=there>there")

        def log_message(self, format: str, *arguments: Any) -> None:
            pass

    def count(name: str) -> float:
        lines = httpx.get(f"{server.url}/metrics", timeout=60).text.splitlines()
        return float(next(line for line in lines if line.startswith(f"rhapsode_{name} ")).split()[1])

    while count("running_texts") or count("waiting_texts"):  # for pages that have gone
        time.sleep(0.05)
    before = count("written_tokens_total")
    with ThreadingHTTPServer(("127.0.0.1", 0), Blank) as elsewhere:
        threading.Thread(target=elsewhere.serve_forever, daemon=True).start()
        page = open_page(f"http://127.0.0.1:{elsewhere.server_port}/", ready="#there")
        found = page.evaluate(ELSEWHERE, server.url)
        page.expected_problems.clear()
        elsewhere.shutdown()
    assert found == {**dict.fromkeys(("json", "text", "blob", "models"), "TypeError"), "blind": "opaque "}
    assert count("written_tokens_total") == before
