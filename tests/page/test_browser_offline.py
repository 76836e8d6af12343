"""The offline file in Chromium: a page that needs nothing, and everything that a reader does with it."""

import base64
import json
import re
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from rhapsode.api import load
from rhapsode.export.network import packed_network, unpacked_network
from rhapsode.trained import Model

ODD = 'Once <script>alert("no")</script> 👩‍👩‍👧‍👦 &amp; שלום'


def text_of(page: Any) -> str:
    """The story as it stands there, without the marks before and after it."""
    spans = page.locator("#story > span[data-i]:not(.start, .blank)").all_text_contents()
    return "".join(spans)


def write(page: Any, prompt: str, tokens: int = 12) -> None:
    settle(page, max_tokens=tokens)
    page.get_by_label("Begin a story").fill(prompt)
    with written_anew(page):
        page.get_by_role("button", name="Write", exact=True).click()
    page.locator("#story", has_text=prompt).wait_for()


@contextmanager
def written_anew(page: Any) -> Iterator[None]:
    """What is done in the block begins a branch, which is written at the end, perhaps in the words that stood there."""
    branches = page.locator("#branches .walk")
    before = branches.count()
    yield
    branches.nth(before).wait_for(state="attached")  # at which moment the model begins to write it
    written(page)


def settle(page: Any, **settings: float) -> None:
    page.locator("#thought details").evaluate("node => { node.open = true; }")
    for name, value in settings.items():
        page.locator(f"#dial-{name}").fill(str(value))


def written(page: Any) -> None:
    page.wait_for_selector("#stop", state="hidden")
    page.wait_for_selector("#thought .bars button")


def test_it_opens_with_no_network(open_page: Any, offline_file: Path, tiny_run: Path) -> None:
    """Would catch a font, script or image from elsewhere, and a first look at an empty page."""
    page = open_page(offline_file.as_uri(), offline=True)
    fetched: list[str] = []
    page.on("request", lambda request: fetched.append(request.url))
    page.reload()
    page.wait_for_selector("#thought .bars button")
    elsewhere = [url for url in fetched if not url.startswith(("blob:", "data:", offline_file.as_uri()))]
    assert elsewhere == []
    sample = json.loads(page.locator("#about").text_content())["sample"]
    assert sample
    assert text_of(page) == load(tiny_run, device="cpu").tokenizer.decode(sample)
    assert "parameters" in page.locator("#model").text_content()
    policy = page.locator("meta[http-equiv]").get_attribute("content")
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy


def test_the_greedy_story_is_that_of_python(open_page: Any, offline_file: Path, tiny_run: Path) -> None:
    """Would catch any step from prompt to text that the browser does otherwise."""
    page = open_page(offline_file.as_uri())
    settle(page, temperature=0)
    write(page, "Once upon", 40)
    model = load(tiny_run, device="cpu")
    network = unpacked_network(packed_network(model.network)).double()
    expected = Model(network, model.tokenizer).generate("Once upon", max_tokens=40, temperature=0)[0]
    assert text_of(page) == str(expected)


def test_text_is_text(open_page: Any, offline_file: Path) -> None:
    """Would catch a prompt that becomes markup, and an emoji that falls apart into its parts."""
    page = open_page(offline_file.as_uri())
    scripts = page.locator("script").count()
    write(page, ODD)
    assert text_of(page).startswith(ODD)
    assert page.locator("script").count() == scripts
    assert "👩‍👩‍👧‍👦" in [text.strip() for text in page.locator("#story > span").all_text_contents()]
    write(page, "שלום עולם")
    assert page.locator("#story").evaluate("node => getComputedStyle(node).direction") == "rtl"


def test_branching_and_walking_the_tree(open_page: Any, offline_file: Path, tmp_path: Path) -> None:
    """Would catch a branch that changes what it left, a prune that takes too much, a file that restores others."""
    page = open_page(offline_file.as_uri())
    write(page, "Once upon a time")
    first = text_of(page)
    page.locator("#story > span[data-i='6']").click()
    page.wait_for_selector("#thought .bars .came")
    with written_anew(page):
        page.locator("#thought .bars li:not(.came) button").first.click()
    second = text_of(page)
    assert second != first
    ended = page.locator("#story .end").count()
    assert page.locator("#story .here").get_attribute("data-i") == str(
        page.locator("#story > span").count() - 2 - ended
    )
    page.get_by_role("button", name="Edit").click()
    page.locator("#text").fill(second[:10] + " dragon")
    page.get_by_role("button", name="Read it").click()
    page.wait_for_selector("#branches li li li, #branches li li ~ li")
    assert text_of(page) == second[:10] + " dragon"

    page.locator("#branches").get_by_role("button", name="Rename").last.click()
    page.locator("#branches input").fill("the dragon")
    page.keyboard.press("Enter")
    assert page.evaluate("document.activeElement.textContent") == "the dragon"
    assert text_of(page) == second[:10] + " dragon"
    with page.expect_download() as download:
        page.get_by_role("button", name="Save to a file").click()
    saved = tmp_path / "story.json"
    download.value.save_as(saved)
    assert "the dragon" in saved.read_text(encoding="utf-8")

    walks = page.locator("#branches .walk")
    walks.nth(1).click()  # 0 is the story that stood there first
    written(page)
    assert text_of(page) == first
    page.locator("#branches").get_by_role("button", name="Prune").nth(1).click()
    assert walks.count() == 1
    page.get_by_role("button", name="Undo").click()
    assert walks.count() == 4
    assert text_of(page) == first
    page.locator("#branches").get_by_role("button", name="Prune").nth(1).click()

    page.locator("#file").set_input_files(saved)
    page.get_by_role("button", name="the dragon", exact=True).click()
    assert text_of(page) == second[:10] + " dragon"
    (tmp_path / "broken.json").write_text("[1]")
    page.locator("#file").set_input_files(tmp_path / "broken.json")
    assert "holds no saved story" in page.get_by_role("alert").first.text_content()


def place_in(url: str) -> int | None:
    """The place in the story that a link has the reader look at."""
    packed = url.partition("#story~")[2]
    return json.loads(zlib.decompress(base64.urlsafe_b64decode(packed + "==="), -15))["cursor"] if packed else None


def test_a_link_restores_the_page(open_page: Any, offline_file: Path) -> None:
    """Would catch a link that loses the settings, the branches, or the place that was looked at."""
    page = open_page(offline_file.as_uri())
    settle(page, temperature=1.5, top_k=7)
    write(page, "Once upon a time", 15)
    page.locator("#story > span[data-i='5']").click()
    page.wait_for_url(lambda url: place_in(url) == 5)
    text, url = text_of(page), page.url
    page.goto("about:blank")
    page.goto(url)
    page.wait_for_selector("#thought .bars .came")
    assert text_of(page) == text
    assert page.locator("#dial-temperature").input_value() == "1.5"
    assert page.locator("#dial-top_k").input_value() == "7"
    assert page.locator("#story .here").get_attribute("data-i") == "5"
    page.goto("about:blank")
    page.goto(url[: url.index("~") + 30])
    page.wait_for_selector("#notice:not([hidden])")
    assert "broken" in page.locator("#notice").text_content()


def test_the_next_story_is_another(open_page: Any, offline_file: Path) -> None:
    """Would catch a Write that writes the same story again, a seed that does not bring one back, and a mouse that still
    points at a token of a longer story."""
    page = open_page(offline_file.as_uri())
    write(page, "Once upon a time", 60)
    page.locator("#story > span[data-i]:not(.blank, .turn)").last.hover()
    settle(page, max_tokens=10)
    page.get_by_label("Begin a story").fill("On")
    page.keyboard.press("Enter")
    page.locator("#branches .walk[aria-current]", has_text=re.compile("^On")).wait_for()
    written(page)
    page.wait_for_timeout(300)
    assert page.locator("#notice").is_hidden()
    stories = []
    for _ in range(2):
        write(page, "Once upon a time", 20)
        stories.append(text_of(page))
    assert stories[0] != stories[1]
    assert page.locator("#dial-seed").input_value() == "4"
    page.locator("#dial-seed").fill("2")
    page.locator("#dial-seed").press("Enter")
    write(page, "Once upon a time", 20)
    assert text_of(page) == stories[0]


def test_samples_side_by_side(open_page: Any, offline_file: Path) -> None:
    """Would catch samples that are all the same, or of which one cannot be taken."""
    page = open_page(offline_file.as_uri())
    settle(page, n=3, temperature=1.2)
    write(page, "Once upon a time", 15)
    texts = page.locator("#samples .words").all_text_contents()
    assert len(texts) == len(set(texts)) == 3
    page.get_by_role("button", name="Take this one").nth(2).click()
    assert text_of(page) == "Once upon a time" + texts[2]


def test_keys_alone(open_page: Any, offline_file: Path) -> None:
    """Would catch a control that only a mouse reaches, a lost focus, and a screen reader that hears nothing."""
    from playwright.sync_api import expect

    page = open_page(offline_file.as_uri())
    for _ in range(12):
        page.keyboard.press("Tab")
        if page.evaluate("document.activeElement.id") == "prompt":
            break
    page.keyboard.type("Once upon a time")
    with written_anew(page):
        page.keyboard.press("Enter")
    for _ in range(12):
        page.keyboard.press("Tab")
        if page.evaluate("document.activeElement.id") == "story":
            break
    page.keyboard.press("Home")
    for _ in range(4):
        page.keyboard.press("ArrowRight")
    page.wait_for_selector("#story .here[data-i='4']")
    page.wait_for_selector("#thought .bars .came")
    expect(page.locator("#announced")).to_contain_text("bits. Expected:")
    free = page.locator("#thought .bars button").evaluate_all("all => all.findIndex(each => !each.disabled)")
    with written_anew(page):
        page.keyboard.press(str(free + 1))
    page.locator("#story").focus()
    page.keyboard.press("e")
    assert page.evaluate("document.activeElement.id") == "text"
    page.keyboard.press("Escape")
    assert page.evaluate("document.activeElement.id") == "story"


def test_a_story_is_read_out_by_the_sentence(open_page: Any, offline_file: Path) -> None:
    """Would catch a screen reader that is told token after token, or that misses a part."""
    page = open_page(offline_file.as_uri())
    page.locator("#announced").evaluate(
        "node => { window.heard = []; const hear = () => window.heard.push(node.textContent);"
        " new MutationObserver(hear).observe(node, { childList: true }); }"
    )
    write(page, "Once upon a time", 60)
    heard = [each for each in page.evaluate("window.heard") if "Expected:" not in each]
    assert 1 <= len(heard) < 20
    assert "".join("".join(heard).split()) == "".join(text_of(page).removeprefix("Once upon a time").split())


def test_the_dials_cut_the_distribution(open_page: Any, offline_file: Path) -> None:
    """Would catch a slider without effect on what is shown."""
    from playwright.sync_api import expect

    page = open_page(offline_file.as_uri())
    write(page, "Once upon a time")
    page.locator("#story > span[data-i='3']").click()
    page.wait_for_selector(".chart .kept")
    page.get_by_text("tokens can be drawn").wait_for()
    settle(page, top_k=4)
    expect(page.locator(".chart .kept")).to_have_count(4)
    expect(page.locator(".chart .cut")).to_have_count(36)
    settle(page, temperature=0)
    expect(page.locator(".chart .kept")).to_have_count(1)
    heights = []
    for temperature in (0.3, 2):
        settle(page, temperature=temperature)
        heights.append(float(page.locator(".chart .kept").first.get_attribute("height")))
    assert heights[0] > heights[1]


@pytest.mark.parametrize("view", ["story", "lectures"])
def test_a_phone_shows_all_of_it(view: str, open_page: Any, offline_file: Path) -> None:
    """Would catch a page that is wider than its screen."""
    page = open_page(offline_file.as_uri(), viewport={"width": 360, "height": 740}, has_touch=True)
    write(page, "Once upon a time")
    page.get_by_role("link", name=view.capitalize(), exact=True).click()
    assert page.evaluate("document.documentElement.scrollWidth") <= 360
    if view == "story":
        page.locator("#story > span[data-i='4']").tap()
        assert page.locator("#story .here").get_attribute("data-i") == "4"
        assert page.locator("#thought h2").is_visible()


def test_themes_and_motion(open_page: Any, offline_file: Path) -> None:
    """Would catch a theme that is not the system's, a switch that does nothing, a motion that was not wanted."""
    dark = open_page(offline_file.as_uri(), color_scheme="dark", reduced_motion="reduce")
    paper = "getComputedStyle(document.documentElement).backgroundColor"
    assert sum(map(int, dark.evaluate(f"{paper}.match(/\\d+/g).slice(0, 3)"))) < 200
    dark.get_by_role("button", name="Light", exact=True).click()
    assert sum(map(int, dark.evaluate(f"{paper}.match(/\\d+/g).slice(0, 3)"))) > 600
    assert dark.locator(".bar").first.evaluate("node => getComputedStyle(node).transitionDuration") == "0s"


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_nothing(scheme: str, open_page: Any, offline_file: Path, axe: str) -> None:
    """Would catch text too pale to read, a control without a name, a landmark or heading out of place."""
    page = open_page(offline_file.as_uri(), color_scheme=scheme)
    page.locator("#thought details").evaluate("node => { node.open = true; }")
    assert violations(page, axe) == []
    page.get_by_role("button", name="Edit").click()
    assert violations(page, axe) == []
    page.get_by_role("link", name="Lectures").click()
    for chapter in page.locator("#view-lectures nav a").all():
        chapter.click()
        page.locator("#view-lectures details").evaluate("node => { node.open = true; }")
        assert violations(page, axe) == []


def violations(page: Any, axe: str) -> list[str]:
    page.evaluate(axe)
    found = page.evaluate("async () => (await axe.run()).violations")
    return [json.dumps([each["id"], [node["target"] for node in each["nodes"]][:4]]) for each in found]
