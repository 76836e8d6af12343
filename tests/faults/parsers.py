"""All that Rhapsode parses, each as a function of bytes that feeds them to it as a user would.

Whatever the bytes are, it must return or raise a ValueError or OSError that is one printable line. `seeds` gives good
input of each, from which a fuzzer starts.
"""

import atexit
import gzip
import io
import json
import os
import shutil
import sys
import tempfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass
from functools import cache, wraps
from pathlib import Path
from typing import Any
from unittest.mock import MagicMock, patch

import typer
import zstandard
from material import Material, course_model, finished_study, material, new_run, trained, using_cache
from typer.main import get_command
from web_parsers import web_parsers

import rhapsode
from rhapsode.cli import main
from rhapsode.course import load_course_model
from rhapsode.files import CHECKSUMS, read_checksums
from rhapsode.progress import silent
from rhapsode.recipe.changes import read_assignments, read_toml
from rhapsode.run import Run
from rhapsode.sources import SourceConfig, open_source
from rhapsode.sources.hub import parse_address
from rhapsode.state import State
from rhapsode.studies.directory import Study
from rhapsode.terminal import literal, literal_lines, told
from rhapsode.textbook.explain import app as explain_app
from rhapsode.tokenizer import Tokenizer
from rhapsode.tokens import TokenStore


@dataclass(frozen=True)
class Parser:
    """parse: takes the bytes; seeds: good input."""

    parse: Callable[[bytes], Any]
    seeds: Callable[[], list[bytes]]


@cache
def made() -> Material:
    """Whatever the parsers need around the bytes, made once in a process."""
    folder = Path(tempfile.mkdtemp(prefix="rhapsode-hostile-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return material(folder)


@cache
def _run_path() -> Path:
    return trained(made(), new_run(made(), made().folder / "run")).path


@cache
def _study_path() -> Path:
    finished_study(made(), made().folder / "study", report=False)
    return made().folder / "study"


def _put(file: Path, data: bytes) -> None:
    """Writes a file as a new one: ext4 sends one that is overwritten to the disk at once, ten times as slowly."""
    file.unlink(missing_ok=True)
    file.write_bytes(data)


def _scratch(name: str, data: bytes) -> Path:
    file = made().folder / name
    _put(file, data)
    return file


def _source(name: str, **config: Any) -> Callable[[bytes], Any]:
    def parse(data: bytes) -> None:
        source = open_source([str(_scratch(name, data))], SourceConfig(**config))
        for _, _ in zip(source.stories(), range(1000), strict=False):
            pass

    return parse


def _in_run(name: str, use: Callable[[Run], Any]) -> Callable[[bytes], Any]:
    """A file of a run replaced."""

    def parse(data: bytes) -> None:
        file = _run_path() / name
        before = file.read_bytes()
        _put(file, data)
        try:
            use(Run.open(_run_path()))
        finally:
            _put(file, before)

    return parse


def _checkpoint(run: Run) -> None:
    found = run.load("last")
    assert found is not None
    run.check_fits(found.tensors)


def _tokenizer(data: bytes) -> None:
    folder = made().folder / "hostile-tokenizer"
    folder.mkdir(exist_ok=True)
    _put(folder / "tokenizer.json", data)
    tokenizer = Tokenizer.load(folder)
    if tokenizer.vocab_size < 10**6:
        tokenizer.decode(tokenizer.encode("Once upon a time, </s> there was"))


def _tokenizer_seeds() -> list[bytes]:
    return [(made().folder / "tokenizer" / "tokenizer.json").read_bytes()]


def _study(data: bytes) -> None:
    folder = made().folder / "hostile-study"
    folder.mkdir(exist_ok=True)
    _put(folder / "study.json", data)
    Study.open(folder).results()


def _store(data: bytes) -> None:
    (good,) = (made().cache / "tokens").glob("store-*")
    folder = made().folder / good.name
    if not folder.exists():
        shutil.copytree(good, folder)
        (folder / CHECKSUMS).unlink()
    _put(folder / "store.json", data)
    TokenStore.open(folder).story(0)


def _store_seeds() -> list[bytes]:
    return [next((made().cache / "tokens").glob("store-*/store.json")).read_bytes()]


def _sums(data: bytes) -> None:
    _scratch(CHECKSUMS, data)
    read_checksums(made().folder)


@cache
def _model() -> rhapsode.Model:
    return rhapsode.load(_run_path())


def _prompt(data: bytes) -> None:
    """As a text, with whatever surrogates the bytes make, or as a command line brings it; read by one of the verbs."""
    choice, model = zlib.crc32(data), _model()
    as_pairs = choice % 2 and len(data) % 2 == 0
    text = data.decode("utf-16-le", "surrogatepass") if as_pairs else data.decode("utf-8", "surrogateescape")
    ids = model.tokenizer.encode(model._checked(text))
    assert model.tokenizer.decode(ids) == text
    verb = choice // 2 % 3
    if verb == 0:
        model.generate(text, max_tokens=2)
    elif verb == 1:
        model.next_tokens(text)
    elif text:
        assert model.score(text).nats >= 0


def _toml(data: bytes) -> None:
    read_toml(_scratch("config.toml", data))


def _assignments(data: bytes) -> None:
    read_assignments(data.decode("utf-8", "surrogateescape").split("\0"))


OF_A_RUN = ("generate", "evaluate", "inspect", "check", "chat", "export")
STUDIES = ("size", "batch", "sequences", "temperature", "all", "tracking", "grid")
VERBS = [
    [verb] for verb in (*OF_A_RUN, "train", "story", "prepare", "import", "plan", "serve", "tell", "bench", "corpus")
]
VERBS += [["version"], ["explain"], ["study"], *(["study", name] for name in STUDIES)]
VERBS += [["explain", command.name or command.callback.__name__] for command in explain_app.registered_commands]  # type: ignore[union-attr]
WORK = {  # behind a verb, in place of what trains, writes, listens or waits for a person; gives what the verb prints
    "rhapsode.api": ("train", "study", "explain_preset", "import_course_model"),
    "rhapsode.preparing": ("prepare_store",),
    "rhapsode.serve.server": ("serve_runs",),
    "rhapsode.bench": ("bench",),
    "rhapsode.storyworld": ("training_stories",),
    "rhapsode.packaged.teller": ("tell_story",),
}
NOTHING = MagicMock()  # one for all, since an input takes less time than thirty of them
PACKED = {"file": "page.html", "bytes": 1, "bytes_per_parameter": 1.0}


@contextmanager
def _nothing_is_done() -> Iterator[None]:
    """Within the block the verbs that do more than read only understand what they are told to do."""
    NOTHING.reset_mock()
    with ExitStack() as stack:
        for module, names in WORK.items():
            for name in names:
                stack.enter_context(patch(f"{module}.{name}", NOTHING))
        stack.enter_context(patch("rhapsode.api.export_html", lambda *_, **__: PACKED))
        stack.enter_context(patch("rhapsode.chat.commands.Chat.run", NOTHING))
        for command in explain_app.registered_commands:
            parsed = wraps(command.callback)(lambda **given: None)  # type: ignore[arg-type]
            stack.enter_context(patch.object(command, "callback", parsed))
        stack.enter_context(patch.object(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"Once upon a time"))))
        stack.enter_context(patch("typer.main.get_command", _commands))  # made once, not for each input
        yield


@cache
def _commands(app: typer.Typer) -> Any:
    return get_command(app)


@cache
def _empty_folder() -> Path:
    """Where there is nothing, above it neither, for a verb that reads all files of a folder."""
    folder = made().folder / "empty" / "folder" / "here"
    folder.mkdir(parents=True)
    return folder


def _command_line(data: bytes) -> None:
    """Arguments as the shell hands them over, behind a verb that the first byte chooses."""
    verb = VERBS[data[0] % len(VERBS)] if data else []
    words = data[1:].decode("utf-8", "surrogateescape").split("\0") if data[1:] else []
    argv = ["rhapsode", *verb, *([str(_run_path())] if verb and verb[0] in OF_A_RUN else []), *words]
    out, err = io.StringIO(), io.StringIO()
    os.chdir(_empty_folder())
    with _nothing_is_done(), patch.object(sys, "argv", argv), redirect_stdout(out), redirect_stderr(err):
        code: Any = 0
        try:
            main()
        except SystemExit as end:
            code = end.code
    assert code in (None, 0, 1, 2, 130), code
    assert "Traceback" not in err.getvalue()
    assert err.getvalue() == literal_lines(err.getvalue()), err.getvalue()[:300]


def _command_seeds() -> list[bytes]:
    """Decent words behind each verb, and options that several have."""
    for_all = ("--json", "a --seed 3", "--seed -1", "--help", "a --out b --set hidden_dim=8", "--threads 1")
    words = [(verb, for_all[number % len(for_all)]) for number, verb in enumerate(VERBS)]
    words += [
        (["generate"], "Once --max-tokens 3 --stop . -n 2"),
        (["plan"], "--tokens 5e7 --machines 3 --processes 2"),
        (["serve"], "--port 0 --memory 1.5 --host 127.0.0.1"),
        (["import"], "model.pt run --tokenizer t"),
        (["train"], "a.txt --minutes 1 --set window=8 --processes 2"),
        (["prepare"], "a.txt --out s3://b/c -w 2"),
        (["study", "grid"], "--vary learning_rate=0.1,0.2 --jobs 2"),
    ]
    return [bytes([VERBS.index(verb)]) + "\0".join(each.split()).encode() for verb, each in words]


def _state_seeds() -> list[bytes]:
    file = made().folder / "state.safetensors"
    _model().read("Once upon").save(file)
    return [file.read_bytes()]


def _parquet_seeds() -> list[bytes]:
    import pyarrow
    import pyarrow.parquet

    buffer = io.BytesIO()
    pyarrow.parquet.write_table(pyarrow.table({"text": ["Once upon a time.", "The end."]}), buffer)
    return [buffer.getvalue()]


RECORDS = b'{"text": "Once upon a time", "n": 1}\n{"text": "there \\ud83d\\ude00 was"}\n'
PARSERS: dict[str, Parser] = {
    "text": Parser(_source("a.txt"), lambda: [b"One story.\n\nAnother one.\n", b"a<|endoftext|>b"]),
    "JSON": Parser(
        _source("a.json"), lambda: [b'["one", "two"]', b'[{"text": "one"}, {"text": null}]', b"[[1, 2], [3]]"]
    ),
    "JSON Lines": Parser(_source("a.jsonl"), lambda: [RECORDS, b"[1, 2]\n[3]\n", b'"a"\n"b"\n']),
    "a file of unknown kind": Parser(_source("stories"), lambda: [RECORDS, b"One.\n\nTwo.\n", b"a,b\n1,2\n"]),
    "CSV": Parser(_source("a.csv"), lambda: [b'text,n\n"Once, upon",1\nThe end,2\n', b"a;text\n1;one\n"]),
    "TSV": Parser(_source("a.tsv"), lambda: [b"text\tn\nOnce upon\t1\n"]),
    "Parquet": Parser(_source("a.parquet"), _parquet_seeds),
    "gzip": Parser(_source("a.jsonl.gz"), lambda: [gzip.compress(RECORDS, mtime=0)]),
    "zstandard": Parser(_source("a.jsonl.zst"), lambda: [zstandard.compress(RECORDS), zstandard.compress(RECORDS) * 2]),
    "tokenizer.json": Parser(_tokenizer, _tokenizer_seeds),
    "a checkpoint": Parser(
        _in_run("last.safetensors", _checkpoint), lambda: [(_run_path() / "last.safetensors").read_bytes()]
    ),
    "a saved state": Parser(lambda data: State.load(_scratch("hostile.safetensors", data)), _state_seeds),
    "run.json": Parser(
        _in_run("run.json", lambda run: run.load_model()), lambda: [(_run_path() / "run.json").read_bytes()]
    ),
    "metrics.jsonl": Parser(
        _in_run("metrics.jsonl", Run.metrics), lambda: [(_run_path() / "metrics.jsonl").read_bytes()]
    ),
    "study.json": Parser(_study, lambda: [(_study_path() / "study.json").read_bytes()]),
    "store.json": Parser(_store, _store_seeds),
    "SHA256SUMS": Parser(_sums, lambda: [b"# rhapsode: a tokenizer\n" + b"0" * 64 + b"  tokenizer.json\n"]),
    "model.pt": Parser(
        lambda data: load_course_model(_scratch("model.pt", data)),
        lambda: [course_model(made(), made().folder / "good.pt").read_bytes()],
    ),
    "TOML": Parser(_toml, lambda: [b'[model]\nhidden_dim = 8\nactivation = "tanh"\n[train]\nsequences = 100\n']),
    "--set": Parser(_assignments, lambda: [b"hidden_dim=8\0train.sequences=10", b"carry_state=true"]),
    "a Hub address": Parser(
        lambda data: parse_address("hub:" + data.decode("utf-8", "replace")),
        lambda: [b"org/name@main:train", b"tinystories"],
    ),
    "a prompt": Parser(_prompt, lambda: [b"Once upon a time", "👩‍👩‍👧 שלום".encode(), "a b\0c".encode("utf-16-le")]),
    "the command line": Parser(_command_line, _command_seeds),
}
PARSERS |= {name: Parser(*each) for name, each in web_parsers(_run_path, lambda: made().folder / "page").items()}


def feed(name: str, data: bytes) -> str:
    """Feeds a parser; returns `taken` or `refused`, raises whatever else it does."""
    with silent(), using_cache(made().cache):
        here = os.getcwd()
        os.chdir(made().folder)
        try:
            PARSERS[name].parse(data)
        except (ValueError, OSError) as error:
            line = told(error)
            assert line == literal(line), f"not one printable line: {line!r}"
            assert len(line) < 5000, f"a message of {len(line):,} characters"
            return "refused"
        finally:
            os.chdir(here)
    return "taken"


def good(name: str) -> list[bytes]:
    """Good input of a parser."""
    with silent(), using_cache(made().cache):
        return PARSERS[name].seeds()


def mutated(data: bytes, change: list[tuple[int, int, int]]) -> bytes:
    """The data with some changes, each (what, where, with what): a byte replaced, put in, cut out, a part doubled,
    a word put in, a value of JSON replaced."""
    for what, where, value in change:
        where %= len(data) + 1
        if what == 0:
            data = data[:where] + bytes([value % 256]) + data[where + 1 :]
        elif what == 1:
            data = data[:where] + bytes([value % 256]) + data[where:]
        elif what == 2:
            data = data[:where] + data[where + value % 64 :]
        elif what == 3:
            data = data[: where + value % 64] + data[where:]
        elif what == 5:
            data = _with_another_value(data, where, value)
        else:
            data = data[:where] + WORDS[value % len(WORDS)] + data[where:]
    return data


def _with_another_value(data: bytes, where: int, value: int) -> bytes:
    """JSON with one of its values replaced, which a change of bytes seldom does; other data as they are."""
    try:
        found = [json.loads(data)]
        places = list(_places(found))
    except (ValueError, RecursionError):
        return data
    holder, key = places[where % len(places)]
    holder[key] = VALUES[value % len(VALUES)]
    return json.dumps(found[0]).encode()


def _places(holder: Any) -> Iterator[tuple[Any, Any]]:
    for key in list(holder) if isinstance(holder, dict) else range(len(holder)):
        yield holder, key
        if isinstance(holder[key], dict | list):
            yield from _places(holder[key])


VALUES: list[Any] = [
    *(None, True, False, 0, -1, 1, 1.5, 299, 300, 1e308, -0.0, 2**31, 2**63, 2**64, 10**400),
    *("", "a", "\0", "\ud800", "9" * 5000, "👩‍👩‍👧", [], {}, [[]], [1], ["a"], [None] * 50, [[1, 2], [3]], {"a": 1}),
]
WORDS = [b"null", b"-1", b"1e999", b"NaN", b"[" * 5000, b'{"a":', b"\xff\xfe", b"\x00", b"9" * 5000, b'"', b"\\ud800",
         b"99999999999999999999", b"\xef\xbb\xbf", b"\x1b[2J", b"true", b",,", b"../../etc", "é".encode(), b"\r\n",
         json.dumps({"model": {}}).encode()]  # fmt: skip
