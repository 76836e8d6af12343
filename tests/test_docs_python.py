"""docs/python.md runs as it stands and names all there is; the package is typed, quick to import, its names hold."""

import inspect
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import rhapsode
from rhapsode.results import AttentionMap, Completion, CopyMap, NextToken, Scores, TextScore
from rhapsode.state import State

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "python.md"
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(ROOT / "src")}


def examples(page: Path = PAGE) -> list[tuple[int, str]]:
    """The page's Python code, each with its line in the page."""
    text = page.read_text(encoding="utf-8")
    return [
        (text.count("\n", 0, m.start(1)) + 1, m[1]) for m in re.finditer(r"^```python\n(.*?)^```$", text, re.M | re.S)
    ]


@pytest.mark.slow
def test_every_example_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture) -> None:
    """Would catch an example that a change of the package broke; they share their names, as in one session."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("RHAPSODE_CACHE", str(tmp_path / "cache"))
    names: dict[str, object] = {"__name__": "__main__"}
    found = examples()
    assert len(found) > 15
    for line, code in found:
        exec(compile("\n" * (line - 1) + code, str(PAGE), "exec"), names)  # an error names the page and its line
    out, err = capfd.readouterr()
    assert "Once upon a time" in out
    assert err == ""
    refused = out.strip().splitlines()[-5:]
    assert "give only one budget" in refused[0]
    assert refused[-1] == "temperature must be >= 0, got -1"


def test_the_example_of_decoding_runs(tiny_run: Path, capsys: pytest.CaptureFixture) -> None:
    """Would catch a page about the engine that the engine has left behind."""
    for line, code in examples(ROOT / "docs" / "decoding.md"):
        names: dict[str, object] = {"model": rhapsode.load(tiny_run, device="cpu")}
        exec(compile("\n" * (line - 1) + code, "decoding.md", "exec"), names)
    assert len({each.split()[0] for each in capsys.readouterr().out.splitlines() if each}) >= 3


def test_the_example_of_the_kernels_runs(capsys: pytest.CaptureFixture) -> None:
    """Would catch a page about the forms of the kernels that they have left behind."""
    ((_, code),) = examples(ROOT / "docs" / "kernels.md")
    exec(compile(code, "kernels.md", "exec"), {})
    assert re.findall(r"fast|plain", capsys.readouterr().out) == ["fast", "plain"]


@pytest.mark.slow
def test_the_first_lines_of_the_readme_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture
) -> None:
    """Would catch a newcomer's first lines that fail; the minute is left out, and most of the corpus."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("RHAPSODE_CACHE", str(tmp_path / "cache"))
    code = examples(ROOT / "README.md")[0][1]
    quick = code.replace('"storyworld", minutes=1', '"storyworld:500", preset="minute", tokens=4_000')
    assert quick != code
    exec(compile(quick, "README.md", "exec"), {"__name__": "__main__"})
    assert "NextToken(id=" in capfd.readouterr().out


def test_the_page_has_an_example_of_everything() -> None:
    """Would catch a function, method, field or argument that came since, and one that is written about only."""
    code = "\n".join(code for _, code in examples())
    text = PAGE.read_text(encoding="utf-8")
    functions = {name for name in rhapsode.__all__ if inspect.isfunction(getattr(rhapsode, name))}
    named = {"check", "evaluate", "explain_preset", "export_html", "import_course_model", "load", "prepare_store"}
    assert functions == named | {"study", "train"}
    for name in functions:
        assert f"rhapsode.{name}(" in code, name
    for kind in (rhapsode.Model, Completion, NextToken, Scores, TextScore, AttentionMap, CopyMap, rhapsode.Recipe):
        members = {
            name for name in (*vars(kind), *getattr(kind, "__dataclass_fields__", ())) if not name.startswith("_")
        }
        members |= {"network", "tokenizer"} if kind is rhapsode.Model else set()
        members -= {"run"} | ({"optimizer", "train", "batch"} if kind is rhapsode.Recipe else set())
        for name in members:
            assert re.search(rf"\.{name}\b", code), f"{kind.__name__}.{name}"
    for name in ("save", "load", "join", "rows", "blocks", "ids", "logits"):
        assert hasattr(State, name) or name in State.__dataclass_fields__
        assert re.search(rf"(?i)state\.{name}\b|\.{name}\b", text), name
    for function in (rhapsode.train, rhapsode.Model.generate, rhapsode.Model.score, rhapsode.load):
        for name in set(inspect.signature(function).parameters) - {"self", "tensorboard", "threads"}:
            assert re.search(rf"\b{name}\b", text), f"{function.__name__}: {name}"


USERS_SCRIPT = """
from collections.abc import Iterator
from pathlib import Path

import rhapsode
from rhapsode import Completion, Model, Recipe, State
from rhapsode.training import Event, Interrupted, Step


def stories() -> Iterator[str]:
    yield "a story"


def heard(event: Event) -> None:
    if isinstance(event, Step):
        print(event.loss + 1.0)


def main(path: Path) -> list[str]:
    model: Model = rhapsode.train(
        stories(), minutes=1, model={"hidden_dim": 256}, out=path, valid=["another"], on_event=heard
    )
    rhapsode.train(path.glob("*.txt"))
    rhapsode.train([Path("a"), Path("b")], tokenizer=model.tokenizer, seed=1)
    rhapsode.train(["a", "b"], tokenizer="bpe", vocab_size=300)
    out: list[Completion] = model.generate("Once", n=3, stop=["x"])
    state: State = out[0].state
    state.save("s.safetensors")
    bits: float | None = model.score(["a"]).bits_per_byte
    recipe: Recipe | None = model.recipe
    if recipe is not None and bits is not None:
        print(recipe.with_changes(train={"minutes": 5}).model.hidden_dim + 1, bits + 1.0)
    found: dict[str, object] = rhapsode.evaluate(rhapsode.load(path), "storyworld", generate=3)
    page: Path = rhapsode.study("grid", vary=["batch_size=4,8"], out=path).page
    print(found, page, out[0].top(3)[0][0].probability + 1.0)
    return [*model.stream("Once", state=state), model.next_tokens("Once")[0].text]
"""
MISTAKES = {
    "rhapsode.train(minutes='soon')": "arg-type",
    "rhapsode.train(5)": "arg-type",
    "rhapsode.train(minuets=1)": "call-arg",
    "rhapsode.load('x').generate('a', n='3')": "arg-type",
    "rhapsode.load('x').generate('a')[0].txt": "attr-defined",
    "rhapsode.study('grid', sedes=3)": "call-arg",
    "rhapsode.sing()": "attr-defined",
}


def test_types_of_a_users_script(tmp_path: Path) -> None:
    """Would catch py.typed left out, a name that a checker takes for Any, and right code that it complains of."""
    right, wrong = tmp_path / "right.py", tmp_path / "wrong.py"
    right.write_text(USERS_SCRIPT)
    wrong.write_text("import rhapsode\n" + "\n".join(MISTAKES) + "\n")
    # What stands behind the API is left out, it takes mypy half a minute.
    behind = ("torch", "numpy", "tokenizers", "safetensors", "rich", "typer", "matplotlib")
    config = "".join(f"[mypy-{name}.*]\nfollow_imports = skip\nignore_missing_imports = true\n" for name in behind)
    (tmp_path / "mypy.ini").write_text(f"[mypy]\n{config}")
    options = ["--strict", "--follow-imports=silent", "--cache-dir=cache", "--config-file=mypy.ini"]
    command = [sys.executable, "-m", "mypy", *options, str(right), str(wrong)]
    environment = {**ENVIRONMENT, "MYPYPATH": str(ROOT / "src")}
    told = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=tmp_path, check=False).stdout
    errors = [line for line in told.splitlines() if " error: " in line]
    assert [line for line in errors if "right.py" in line] == []
    expected = [f"wrong.py:{line}: {kind}" for line, kind in enumerate(MISTAKES.values(), start=2)]
    found = [re.sub(r"^.*(wrong\.py:\d+): error: .*\[([\w-]+)\]$", r"\1: \2", line) for line in errors]
    assert found == expected
    assert (ROOT / "src" / "rhapsode" / "py.typed").exists()


def in_a_new_process(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=ENVIRONMENT, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_import_takes_nothing_heavy() -> None:
    """`import rhapsode` is under a tenth of a second because of what it leaves for later; names can be listed."""
    heavy = ("torch", "numpy", "tokenizers", "safetensors", "rich", "typer", "matplotlib")
    code = "import sys, rhapsode; dir(rhapsode); print([name for name in sys.argv[1:] if name in sys.modules])"
    code = code.replace("sys.argv[1:]", repr(heavy))
    assert in_a_new_process(code) == "[]\n"
    with pytest.raises(AttributeError, match="module 'rhapsode' has no attribute 'sing'"):
        _ = rhapsode.sing  # type: ignore[attr-defined]


def test_no_module_takes_the_place_of_a_function() -> None:
    """Would catch a submodule `rhapsode.train`: importing it would put the module where the function was."""
    code = """
import importlib, pkgutil, rhapsode

names = ("train", "load", "evaluate", "study", "explain_preset", "import_course_model")
assert all(callable(getattr(rhapsode, name)) for name in names[::2])  # some before, some only after
modules = [m.name for m in pkgutil.walk_packages(rhapsode.__path__, "rhapsode.") if not m.name.endswith("__main__")]
for module in modules:
    try:
        importlib.import_module(module)
    except ModuleNotFoundError as error:
        assert error.name == "triton", error  # an extra that the tests do without where it cannot be had
for _ in range(2):
    for name in names:
        assert callable(getattr(rhapsode, name)), name
assert {m.split(".")[1] for m in modules}.isdisjoint(rhapsode.__all__)
print(len(modules))
"""
    assert int(in_a_new_process(code)) > 100
