"""Large and long: each in a process of its own, whose memory is measured and bounded.

Sizes at full size: 10 GB of text (less where the disk has no room for three times that), one line of 1 GB, a million
files, a prompt of 100,000 tokens, the metrics of a million steps.
"""

import json
import os
import random
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from harness import NotHere, Tally, Unit
from loopback import WatchedServer
from material import SECTIONS, Material, material, new_run, trained

from rhapsode.recipe import Recipe
from rhapsode.serve.inspecting import MOST_TOKENS_INSPECTED as INSPECTED
from rhapsode.training.start import create_run

BASE_MEGABYTES = 900  # of a process that has imported everything, prepared a small text and drawn a picture
PREPARING_MEGABYTES = 400  # of one that only prepares: 250; a file takes 0.8 kB more, its path and what is known of it
TIMES_TO_PARSE = 10.0  # that lines of metrics may take
BLOCK = 4_000_000  # bytes that are written at once

CHILD = """
import json, sys, time
from pathlib import Path
from rhapsode.progress import silent
begun = time.monotonic()
with silent():
    found = {}
    try:
        exec(sys.argv[1])
    except (ValueError, OSError) as error:
        found["refused"] = str(error)
found["seconds"] = round(time.monotonic() - begun, 2)
peak = Path("/proc/self/status").read_text().partition("VmHWM:")[2]  # ru_maxrss is at least what began this process
found["megabytes"] = int(peak.split()[0]) // 1024
print(json.dumps(found))
"""
PREPARE = """
from rhapsode.sources import SourceConfig, open_source
from rhapsode.tokenizer import Tokenizer
from rhapsode.tokens import prepare
source = open_source([sys.argv[2]], SourceConfig(split=sys.argv[5]))
store = prepare(source, Tokenizer.load(Path(sys.argv[3])), Path(sys.argv[4]))
found |= {"stories": store.num_stories, "bytes": store.num_bytes, "tokens": store.num_tokens}
"""
PROMPT = """
import rhapsode
model = rhapsode.load(sys.argv[2])
text = Path(sys.argv[3]).read_text()
found["tokens"] = len(model.tokenizer.encode(text))
verbs = sys.argv[4].split()
if "generate" in verbs:
    found["written"] = len(model.generate(text, max_tokens=3)[0].tokens)
if "stream" in verbs:
    found["streamed"] = len(list(model.stream(text, max_tokens=3)))
if "score" in verbs:
    found["nats"] = model.score(text).nats
if "next_tokens" in verbs:
    found["likeliest"] = model.next_tokens(text)[0].id
if "read" in verbs:
    found["seen"] = int(model.read(text).ids.shape[1])
if "attention" in verbs:
    found["maps"] = len(model.attention(text).weights)
if "evaluate" in verbs:
    found["scored"] = rhapsode.evaluate(sys.argv[2], [Path(sys.argv[3])], cut="file", threads=1)["tokens"]
if "copies" in verbs:
    found["copied"] = len(model.copies(text).probabilities)
if "chat" in verbs:
    from rhapsode.chat.conversation import Conversation
    from rhapsode.decode import SampleConfig
    conversation = Conversation(model, SampleConfig(3))
    conversation.append(text)
    found["answered"] = len("".join(conversation.go_on()))
if "export" in verbs:
    from rhapsode.api import export_html
    page = Path(sys.argv[5]).with_suffix(".html")
    found["page"] = export_html(sys.argv[2], page, valid=[Path(sys.argv[3])])["bytes"]
if "tell" in verbs:
    from rhapsode.packaged.teller import tell_story
    found["told"] = len("".join(tell_story(text, 3)))
if "train" in verbs:  # which shows a sample of what comes after it
    again = rhapsode.train(Path(sys.argv[6]), out=Path(sys.argv[5]).with_suffix(".run"), sequences=8, vocab_size=280,
                           model={"embed_dim": 8, "hidden_dim": 8}, batch={"window": 8, "batch_size": 4},
                           train={"validations": 1, "prompt": text}, threads=1)
    found["lines"] = len(again.metrics)
if "inspect" in verbs:
    from rhapsode.inspection import draw_reading, next_token_tables, read
    reading = read(model.network, model.tokenizer, text, 3)
    found["tables"] = len(list(next_token_tables(reading)))
    found["pictures"] = len(draw_reading(reading, Path(sys.argv[5])))
"""
METRICS = """
from timeit import repeat
from rhapsode.run import Run
text = (Path(sys.argv[2]) / "metrics.jsonl").read_text()
parse = lambda: [json.loads(line) for line in text.splitlines()]
found["seconds to parse"] = round(min(repeat(parse, number=1, repeat=3)), 3)
found["lines"] = len(Run.open(Path(sys.argv[2])).metrics())
found["seconds to open"] = round(min(repeat(lambda: Run.open(Path(sys.argv[2])).metrics(), number=1, repeat=3)), 3)
"""
VERBS = ("generate", "stream", "score", "next_tokens", "read", "attention", "inspect")
VERBS += ("evaluate", "copies", "chat", "export", "tell", "train")
QUESTIONS: dict[str, Callable[[str], dict[str, Any]]] = {
    "/v1/completions": lambda text: {"prompt": text, "max_tokens": 3},
    "/v1/chat/completions": lambda text: {"messages": [{"role": "user", "content": text}], "max_tokens": 3},
    "/tokenize": lambda text: {"prompt": text},
    "/api/inspect": lambda text: {"text": text, "positions": [1], "top": 3},
}
CONTEXT = 8_192  # tokens that a server takes if nobody says otherwise


def units(small: bool, group: str) -> list[Unit]:
    """group: text, prompts or other."""
    found: dict[str, list[Unit]] = {
        "text": [("text", partial(large_text, 0.005 if small else 10.0))],
        "prompts": [
            ("a prompt", partial(long_prompt, 500 if small else 100_000, [" ".join(VERBS)] if small else VERBS)),
            ("a prompt to a server", partial(prompt_to_server, 500 if small else 100_000)),
        ],
        "other": [
            ("one line", partial(one_line, 0.005 if small else 1.0)),
            ("files in a folder", partial(many_files, 2_000 if small else 1_000_000)),
            ("metrics of a million steps", partial(many_metrics, 20_000 if small else 1_000_000)),
        ],
    }
    return found[group]


def _child(code: str, *arguments: str | Path) -> dict[str, Any]:
    if not Path("/proc/self/status").exists():
        raise NotHere("needs Linux: memory is read from /proc")
    command = [sys.executable, "-c", CHILD, code, *map(str, arguments)]
    result = subprocess.run(
        command, capture_output=True, text=True, env={**os.environ, "RHAPSODE_CACHE": "/nonexistent"}
    )
    assert result.returncode == 0, f"ended with {result.returncode}: {result.stderr[-300:]}"
    return json.loads(result.stdout.splitlines()[-1])


def _needs(folder: Path, gigabytes: float) -> None:
    free = shutil.disk_usage(folder).free / 1e9
    if free < gigabytes:
        raise NotHere(f"needs {gigabytes:,.0f} GB of disk, {free:,.0f} are free")


def large_text(gigabytes: float, seed: int, folder: Path) -> Tally:
    """Paragraphs of numbered words, a few million different ones; all of it must be in the store."""
    _needs(folder, 3 * gigabytes)
    made, draw, tally = material(folder / "made"), random.Random(seed), Tally()
    file = folder / "large.txt"
    words = [text for text in made.texts.read_text().split() if text.isalpha()]
    written = stories = 0
    drawn = [" ".join(draw.choices(words, k=60)) for _ in range(BLOCK // 500)]
    with file.open("w", encoding="utf-8") as stream:
        while written < gigabytes * 1e9:
            part = [f"{text} {stories + i}" for i, text in enumerate(drawn)]
            draw.shuffle(drawn)
            written += sum(len(text.encode()) for text in part)
            stories += len(part)
            stream.write("\n\n".join(part) + "\n\n")

    def check() -> None:
        found = _child(PREPARE, file, made.folder / "tokenizer", folder / "cache", "paragraph")
        tally.facts = {"gigabytes": round(written / 1e9, 2), **found}
        assert found["bytes"] == written, f"{found['bytes']:,} of {written:,} bytes"
        assert found["stories"] == stories, f"{found['stories']:,} of {stories:,} stories"
        assert found["megabytes"] < BASE_MEGABYTES + 24 * stories / 1e6, f"{found['megabytes']:,} MB of memory"

    tally.note_of(check, f"{gigabytes} GB")
    return tally


def one_line(gigabytes: float, seed: int, folder: Path) -> Tally:
    """As text it is one long story; as a record it is refused by name where it is longer than records may be."""
    _needs(folder, 4 * gigabytes)
    made, tally = material(folder / "made"), Tally()
    size = int(gigabytes * 1e9)
    bodies = {
        "line.txt": ("", ""),
        "line.jsonl": ('{"text": "', '"}\n'),
        "line.json": ('["', '"]'),
        "line.csv": ('text\n"', '"\n'),
    }
    for name, (begin, end) in bodies.items():
        file = folder / name
        with file.open("w") as stream:
            stream.write(begin)
            for _ in range(size // 1_000_000):
                stream.write("once upon a time " * 58_823 + "a")
            stream.write(end)

        def check(file: Path = file) -> None:
            found = _child(PREPARE, file, made.folder / "tokenizer", folder / f"cache-{file.suffix}", "line")
            tally.facts[file.name] = found
            if size > 1 << 28 and file.suffix != ".txt":
                assert file.name in found["refused"], found
            else:
                assert found["stories"] == 1, found
            assert found["megabytes"] < BASE_MEGABYTES + 8 * (min(size, 1 << 28) >> 20), f"{found['megabytes']:,} MB"

        tally.note_of(check, f"{gigabytes} GB in {name}")
        file.unlink()
    return tally


def many_files(count: int, seed: int, folder: Path) -> Tally:
    """A folder of so many small stories."""
    _needs(folder, 3 * count * 4096 / 1e9)
    made, tally = material(folder / "made"), Tally()
    written = 0
    for i in range(count):
        place = folder / "stories" / f"{i // 1000:04}"
        if i % 1000 == 0:
            place.mkdir(parents=True)
        text = f"Story number {i} is short."
        (place / f"{i}.txt").write_text(text)
        written += len(text)

    def check() -> None:
        found = _child(PREPARE, folder / "stories", made.folder / "tokenizer", folder / "cache", "file")
        tally.facts = {"files": count, **found}
        assert (found["stories"], found["bytes"]) == (count, written), found
        assert found["megabytes"] < BASE_MEGABYTES + 3 * count / 1000, f"{found['megabytes']:,} MB of memory"

    tally.note_of(check, f"{count:,} files")
    return tally


def _prompt(made: Material, tokens: int) -> str:
    text = "Once upon a time there lived an old fox. "
    return text * (tokens // len(made.tokenizer.encode(text)) + 1)


def long_prompt(tokens: int, verbs: Sequence[str], seed: int, folder: Path) -> Tally:
    made, tally = material(folder / "made"), Tally()
    sections = {**SECTIONS, "model": {**SECTIONS["model"], "copy_dim": 3}}
    recipe = Recipe.from_sections(sections, made.tokenizer.vocab_size)
    run = trained(made, create_run(folder / "run", recipe, made.tokenizer, {}))
    file = folder / "prompt.txt"
    file.write_text(_prompt(made, tokens))
    for verb in verbs:

        def check(verb: str = verb) -> None:
            found = _child(PROMPT, run.path, file, verb, folder / "pictures", made.texts)
            tally.facts[verb] = found
            if "refused" in found:  # where it cannot be: with the number of tokens that can
                assert "tokens" in found["refused"], found
            assert found["megabytes"] < BASE_MEGABYTES + tokens / 50, f"{found['megabytes']:,} MB of memory"

        tally.note_of(check, f"{verb}, {tokens:,} tokens")
    return tally


def prompt_to_server(tokens: int, seed: int, folder: Path) -> Tally:
    """To a server that takes so many tokens, and to one that does not."""
    tally = Tally()
    prompt = _prompt(material(folder / "made"), tokens)

    def check(server: WatchedServer, path: str, limit: int) -> None:
        status, body = server.ask("POST", path, QUESTIONS[path](prompt), seconds=600)
        most = {"/tokenize": tokens, "/api/inspect": INSPECTED}.get(path, limit)
        assert status == (200 if tokens <= most else 400), f"{status}: {body[:200]!r}"
        assert status == 200 or b"tokens" in body, body[:200]
        megabytes = round(server.status("VmHWM"))
        tally.facts[f"{path}, of {limit:,} tokens at most"] = {"megabytes": megabytes}
        assert megabytes < BASE_MEGABYTES + tokens / 50, f"{megabytes:,} MB of memory"

    for limit in (2 * tokens, min(tokens // 2, CONTEXT)):
        server = WatchedServer(folder / str(limit), "--max-context", str(limit))
        for path in QUESTIONS:
            tally.note_of(partial(check, server, path, limit), f"{path}, {tokens:,} tokens of {limit:,} at most")
        server.stop()
    return tally


def many_metrics(lines: int, seed: int, folder: Path) -> Tally:
    """A run of a million steps as it writes them (100 reports, and 1,000 validations); and that many lines."""
    made, tally = material(folder / "made"), Tally()
    run = new_run(made, folder / "run")
    entry = {"event": "train", "step": 0, "sequences": 0, "tokens": 0, "seconds": 0.5, "train_loss": 2.0}
    entry |= {"gradient_norm": 1.25, "rate": 0.5}
    for what, count, most in (("as written", 1_100, 1.0), ("lines", lines, 1.0 + 20 * lines / 1e6)):
        with run.metrics_path.open("w") as stream:
            for step in range(count):
                stream.write(json.dumps(entry | {"step": step, "tokens": 1000 * step}) + "\n")

        def check(what: str = what, count: int = count, most: float = most) -> None:
            found = _child(METRICS, run.path)
            tally.facts[what] = found
            assert found["lines"] == count, found
            longest = max(most, TIMES_TO_PARSE * found["seconds to parse"])  # on a busy machine both take longer
            assert found["seconds to open"] < longest, f"opened in {found['seconds to open']} s"
            assert found["megabytes"] < BASE_MEGABYTES + 2 * lines / 1000, f"{found['megabytes']:,} MB of memory"

        tally.note_of(check, f"{count:,} lines of metrics")
    return tally
