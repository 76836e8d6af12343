"""What Rhapsode is made of, and whom it talks to: nobody, unless a command says so."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import audit
import licences
import lock
import pytest

ROOT = lock.ROOT
ENTRY = re.compile(
    r"^([A-Za-z0-9._-]+)==([^\s;\\]+)(?: ; [^\\\n]*)? \\\n((?:    --hash=sha256:[0-9a-f]{64}(?: \\)?\n?)+)", re.M
)
COUNTING = """
import io, json, socket, sys
connections = []

def heard(event, arguments):
    if event in ("socket.connect", "socket.bind", "socket.sendto", "socket.getaddrinfo", "socket.gethostbyname"):
        if getattr(arguments[0], "family", None) == socket.AF_UNIX:
            return  # a file: how the processes of one command meet
        connections.append([event, str(arguments[-1])[:80]])

sys.addaudithook(heard)
from rhapsode.cli import main
codes = []
for words in json.loads(sys.argv[1]):
    sys.argv, sys.stdin = ["rhapsode", *words], io.StringIO("The end")
    if words[0] == "import":  # of a model of the course, with the vocabulary of the run
        import torch
        from rhapsode.course.model import RNNLanguageModel
        torch.save(RNNLanguageModel(4, 5, json.load(open("run/run.json"))["model"]["vocab_size"], 3, 2), "model.pt")
    try:
        main()
    except SystemExit as end:
        codes.append(end.code)
print(json.dumps([codes, connections]))
"""


def test_the_lock_has_the_digest_of_every_file() -> None:
    """Would catch a package that is installed as whatever the registry gives, and one that is not pinned at all."""
    text = lock.LOCK.read_text(encoding="utf-8")
    entries = {
        licences.normal(name): (version, digests.count("--hash")) for name, version, digests in ENTRY.findall(text)
    }
    assert entries.keys() == {licences.normal(name) for name in lock.pinned(text)}
    assert all(count for _, count in entries.values())
    assert not licences.BESIDE_THE_LOCK & entries.keys()
    for requirement in lock.wanted():
        name = re.match(r"[A-Za-z0-9._-]+", requirement)
        assert name is not None
        assert licences.normal(name[0]) in entries, f"{requirement} is not in requirements.lock; run `make lock`"
    many = sum(count > 10 for _, count in entries.values())
    assert many > 20  # wheels of other systems too


def test_what_is_installed_is_what_is_locked() -> None:
    """Would catch tests that pass with other versions than those that people get."""
    pins = {(licences.normal(name), version) for name, version, _ in ENTRY.findall(lock.LOCK.read_text())}
    found = {name: version for name, version in licences.installed().items() if name not in licences.BESIDE_THE_LOCK}
    assert len(found) > 80
    assert found.items() - pins == set()
    for name in licences.BESIDE_THE_LOCK & licences.installed().keys():
        version = re.search(rf"^{name.upper()} := (\S+)", (ROOT / "Makefile").read_text(), re.MULTILINE)
        assert version is not None
        assert licences.installed()[name].split("+")[0] == version[1]


def test_every_licence_is_on_the_page() -> None:
    """Would catch a package whose licence nobody has read."""
    rows = dict(re.findall(r"^\| ([a-z0-9-]+) \| (.+) \|$", (ROOT / "docs" / "licences.md").read_text(), re.MULTILINE))
    for name in licences.installed():
        assert rows.get(name) == licences.licence_of(name), (
            f"{name}: python tests/supply/licences.py > docs/licences.md"
        )
        assert rows[name] != "not said" or name in ("nvidia",), name
    assert not [name for name, licence in rows.items() if re.search(r"\bA?GPL", licence)]


def verbs(folder: Path) -> list[list[str]]:
    """One of everything that needs no network, on little text."""
    (folder / "a.txt").write_text("Once upon a time there was a fox.\n\nThe end of the other story is here.\n" * 40)
    small = ["--set", "embed_dim=4", "--set", "hidden_dim=4", "--set", "window=8", "--set", "batch_size=2"]
    train = ["train", "a.txt", "--out", "run", "--sequences", "16", "--threads", "1", "--vocab-size", "270", *small]
    study = ["study", "grid", "a.txt", "--vary", "learning_rate=0.001", "--out", "study", "--threads", "1"]
    study += ["--vocab-size", "270", "--set", "sequences=8", *small]
    return [
        train,
        [*train, "--resume"],
        ["generate", "run", "Once", "--max-tokens", "3"],
        ["evaluate", "run"],
        ["inspect", "run", "--text", "Once upon"],
        ["check", "run"],
        ["export", "run", "--out", "page.html"],
        ["chat", "run", "--max-tokens", "3"],
        ["prepare", "a.txt", "--out", "store", "--workers", "2", "--vocab-size", "270"],
        ["import", "model.pt", "imported", "--tokenizer", "run/tokenizer"],
        ["plan", "--tokens", "5e7"],
        ["tell", "Once", "--max-tokens", "3"],
        ["corpus", "1"],
        ["explain", "attention"],
        study,
    ]


def test_nothing_talks_to_anybody(tmp_path: Path) -> None:
    """Would catch telemetry, a look for a newer version, a name that is resolved: counted in Python, and by the system.

    With strace every connection of every process is seen, those of the study's cells and of C code too.
    """
    environment = {**os.environ, "RHAPSODE_CACHE": str(tmp_path / "cache"), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", COUNTING, json.dumps(verbs(tmp_path))]
    trace = tmp_path / "trace"
    if (
        shutil.which("strace")
        and not subprocess.run(["strace", "-o", os.devnull, "true"], capture_output=True).returncode
    ):
        command = ["strace", "-f", "-qq", "-o", str(trace), "-e", "trace=connect,sendto,bind", *command]
    result = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=environment)
    assert result.returncode == 0, result.stderr[-2000:]
    codes, connections = json.loads(result.stdout.splitlines()[-1])
    assert [code or 0 for code in codes] == [0] * len(verbs(tmp_path)), result.stderr[-2000:]
    assert connections == []
    if trace.exists():
        assert not re.findall(r"AF_INET6?", trace.read_text())


@pytest.mark.parametrize(
    ("code", "stderr", "expected"),
    [
        (1, "requests.exceptions.ConnectionError: no route to host", 2),
        (1, "urllib3.exceptions.MaxRetryError: 403 Forbidden", 2),
        (1, "Found 2 known vulnerabilities in 1 package", 1),
        (0, "No known vulnerabilities found", 0),
        (1, "No module named pip_audit", 2),
    ],
)
def test_what_the_audit_says(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], code: int, stderr: str, expected: int
) -> None:
    """Would catch an audit that passes where nobody answered, and one that is silent about what it does not see."""
    ended = subprocess.CompletedProcess([], code, "", stderr)
    monkeypatch.setattr("audit.subprocess.run", lambda *given, **more: ended)
    assert audit.main() == expected
    err = capsys.readouterr().err
    assert (audit.OFFLINE in err) == (expected == 2 and "pip_audit" not in stderr)
    assert audit.UNSEEN in err
    for name in licences.BESIDE_THE_LOCK:
        version = re.search(rf"^{name.upper()} := (\S+)", (ROOT / "Makefile").read_text(), re.MULTILINE)
        assert version is not None
        assert f"{name} {version[1]}" in audit.UNSEEN


@pytest.mark.parametrize("promise", re.findall(r"`(tests/[^`]+)`", (ROOT / "SECURITY.md").read_text(encoding="utf-8")))
def test_what_is_promised_is_tested(promise: str) -> None:
    """Would catch a promise whose test is gone."""
    file, _, name = promise.partition("::")
    assert (ROOT / file).is_file(), promise
    assert not name or re.search(rf"^def {name}\(", (ROOT / file).read_text(encoding="utf-8"), re.MULTILINE), promise
