"""The notebooks run from top to bottom; what the course's shows are the study's numbers, and it asks for little."""

import importlib.util
import json
import re
import subprocess
import sys
import tomllib
from pathlib import Path
from types import ModuleType
from typing import Any

import nbformat
import pytest

from rhapsode import storyworld
from rhapsode.sources import hub
from rhapsode.studies.directory import Study
from rhapsode.tokenizer import train_tokenizer

ROOT = Path(__file__).resolve().parents[1]
NOTEBOOK = ROOT / "notebooks" / "course.ipynb"
NAMES = ("course", "quickstart", "research")
QUIET = {"parameters", "answer", "memory", "load", "recipe", "probe-data"}  # cells that show nothing
SEQUENCES, LENGTH = 300, 128


@pytest.fixture(scope="module")
def execute() -> ModuleType:
    """notebooks/execute.py, which is no part of a package."""
    spec = importlib.util.spec_from_file_location("notebooks_execute", ROOT / "notebooks" / "execute.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def notebook() -> nbformat.NotebookNode:
    return nbformat.read(NOTEBOOK, as_version=4)


def source(notebook: nbformat.NotebookNode, id: str) -> str:
    (cell,) = (cell for cell in notebook.cells if cell.id == id)
    return str(cell.source)


def outputs(notebook: nbformat.NotebookNode, id: str, kind: str) -> list[str]:
    """All outputs of a cell that are of a kind: a MIME type, or the name of a stream."""
    (cell,) = (cell for cell in notebook.cells if cell.id == id)
    found = [output.get("data", {}).get(kind) for output in cell.outputs]
    found += [output.text for output in cell.outputs if output.get("name") == kind]
    return [text for text in found if text is not None]


@pytest.fixture
def course_files(tmp_path: Path) -> list[Path]:
    """Files as the course has them: JSON lists of 128 ids each, and my_tokenizer/."""
    texts = list(storyworld.sample_batch(0, SEQUENCES))
    tokenizer = train_tokenizer(texts, "unigram", 512)
    sequences = [ids[:LENGTH].tolist() for ids in tokenizer.encode_batch(texts) if len(ids) >= LENGTH]
    folder = tmp_path / "given"
    tokenizer.save(folder / "my_tokenizer")
    (folder / "tiny_train_stories.json").write_text(json.dumps(sequences[:-20]))
    (folder / "tiny_valid_stories.json").write_text(json.dumps(sequences[-20:]))
    return sorted(folder.iterdir())


@pytest.mark.slow
def test_all_cells_run_and_show_the_study(
    notebook: nbformat.NotebookNode,
    execute: ModuleType,
    course_files: list[Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Would catch a cell that a change of the package broke, and a table or a plot that is left out."""
    monkeypatch.setenv("PYTHONPATH", str(ROOT / "src"))
    monkeypatch.setenv("RHAPSODE_CACHE", str(tmp_path / "cache"))
    folder = tmp_path / "beside"
    folder.mkdir()
    for assignment in ('SCALE = {"scale": 0.0005}', 'DEVICE = "cpu"', "AT_ONCE = 2"):
        execute.assign(notebook, assignment)
    execute.execute(notebook, folder, course_files, seconds=3_000)
    execute.tidy(notebook)

    assert "tiny_train_stories.json; validation data: tiny_valid_stories.json" in outputs(notebook, "data", "stdout")[0]
    assert "11 models trained, with 0.0005 of the course's" in outputs(notebook, "study", "stdout")[0]
    study = Study.open(folder / "studies" / "scale-0.0005")
    for part in study.plan.parts:
        tables = "\n".join(outputs(notebook, part.name, "text/markdown"))
        for setting in part.settings:
            result = study.result(study.plan.cells[setting.cells[0]])
            assert result is not None
            last = result["points"][-1]
            for key in ("train_loss", "valid_loss"):
                assert f"| {last[key]:.4f} |" in tables, (part.name, setting.label)
        (answers,) = outputs(notebook, f"{part.name}-answers", "text/markdown")
        assert len(re.findall(r"\*\*[^*]+\?\*\* [A-Z][^*]+\.", answers)) == source(
            notebook, f"{part.name}-answers"
        ).count('?",')
    pictures = {id: len(outputs(notebook, id, "image/png")) for id in ("size", "batch", "sequences", "temperature")}
    assert pictures == {"size": 2, "batch": 2, "sequences": 1, "temperature": 1}
    assert "| 241.8 |" in "".join(outputs(notebook, "batch", "text/markdown"))
    completions = outputs(notebook, "completions", "text/markdown")
    assert [text.count("\n- **Once upon a time there was a**") for text in completions] == [1, 3, 3]

    # The course's own door: the losses that it wrote are those of its plot, and it completes at each temperature.
    train_losses, valid_losses = ((folder / "course" / f"{name}_losses.txt").read_text() for name in ("train", "val"))
    assert len(train_losses.split()) == len(valid_losses.split()) > 1
    assert f"Final Valid Loss: {valid_losses.split()[-1]}" in "".join(outputs(notebook, "course-train", "stdout"))
    assert len(outputs(notebook, "course-losses", "image/png")) == 1
    generated = "".join(outputs(notebook, "course-generate", "stdout"))
    assert generated.count("Prefix:  Once upon a time there was a\n") == generated.count("Completion:") == 3
    check_outputs(notebook, str(tmp_path))


def small_notebook(
    name: str, assignments: list[str], execute: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> nbformat.NotebookNode:
    """A notebook of the Python API, run at a small size in a folder of its own."""
    monkeypatch.setenv("PYTHONPATH", str(ROOT / "src"))
    monkeypatch.setenv("RHAPSODE_CACHE", str(tmp_path / "cache"))
    notebook = nbformat.read(NOTEBOOK.with_name(f"{name}.ipynb"), as_version=4)
    for assignment in (*assignments, 'DEVICE = "cpu"'):
        execute.assign(notebook, assignment)
    folder = tmp_path / "beside"
    folder.mkdir()
    execute.execute(notebook, folder, seconds=3_000)
    execute.tidy(notebook)
    check_outputs(notebook, str(tmp_path))
    return notebook


@pytest.mark.slow
def test_the_quickstart_runs_on_texts_of_ones_own(
    execute: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Would catch a cell that fails, a curve drawn in a new place each time, and text that is taken for HTML."""
    text = 'TEXT = [f"Once upon a time <b>cat {i}</b> had {i % 7} kittens & slept." for i in range(500)]'
    notebook = small_notebook("quickstart", [text, "TOKENS = 9_000"], execute, tmp_path, monkeypatch)
    (shown,) = outputs(notebook, "train", "text/html")
    assert "; kept in runs/quickstart</div>" in shown
    assert "<polyline" in shown
    assert "<circle" in shown
    assert outputs(notebook, "text", "stdout") == []
    assert "<span style" in outputs(notebook, "write", "text/html")[0]
    assert len(outputs(notebook, "next", "stdout")[0].splitlines()) == 5
    assert outputs(notebook, "attention", "text/html")[0].count("<svg") == 1
    assert len(outputs(notebook, "score", "stdout")[0].splitlines()) == 2


@pytest.mark.slow
def test_the_research_notebook_runs(execute: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Would catch a cell that fails, seeds that are the same model, and a resumed run that is another one."""
    assignments = ["SEEDS = 2", "TOKENS = 10_000", "STORIES = 150"]
    assignments += ['CORPUS = "storyworld:300"', 'JUDGED = "storyworld:20:valid"']
    notebook = small_notebook("research", assignments, execute, tmp_path, monkeypatch)
    assert [len(outputs(notebook, id, "image/png")) for id in ("curves", "probe")] == [1, 1]
    table = outputs(notebook, "evaluate", "stdout")[0]
    assert len(re.findall(r"\d\.\d{3,4} ± \d\.\d{3,4}", table)) == 6
    assert "± 0.0000" not in table
    assert "stopped and saved in runs/cut" in outputs(notebook, "resume", "stdout")[0]
    assert "bit for bit the same: True" in outputs(notebook, "resume", "stdout")[0]


@pytest.mark.parametrize("name", NAMES)
def test_what_is_committed_is_the_same_everywhere(name: str) -> None:
    """Would catch paths of somebody's machine, progress bars, errors, and outputs of another scale than is said."""
    notebook = nbformat.read(NOTEBOOK.with_name(f"{name}.ipynb"), as_version=4)
    nbformat.validate(notebook)
    assert notebook.metadata == {
        "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
        "language_info": {"name": "python"},
    }
    sizes = {"course": 'SCALE = {"minutes": 20}', "quickstart": "TEXT = None", "research": "SEEDS = 3"}
    assert sizes[name] in source(notebook, "parameters")
    assert all(cell.outputs or cell.id in QUIET for cell in notebook.cells if cell.cell_type == "code")
    assert NOTEBOOK.with_name(f"{name}.ipynb").stat().st_size < 1_500_000
    check_outputs(notebook, str(ROOT))


def check_outputs(notebook: nbformat.NotebookNode, folder: str) -> None:
    for cell in notebook.cells:
        assert set(cell.metadata) <= {"tags"}, cell.id
        for output in cell.get("outputs", ()):
            assert output.output_type != "error", cell.id
            assert output.get("name") != "stderr", cell.id
            text = json.dumps({**output, "data": {k: v for k, v in output.get("data", {}).items() if "png" not in k}})
            for unwanted in (folder, str(Path.home()) + "/", sys.prefix, "/tmp/", "\\u001b", "Traceback"):
                assert unwanted not in text, (cell.id, unwanted)


def test_parameters_are_replaced_by_name(notebook: nbformat.NotebookNode, execute: ModuleType) -> None:
    execute.assign(notebook, 'SCALE = {"scale": 1}')
    assert source(notebook, "parameters").splitlines()[0] == 'SCALE = {"scale": 1}'
    assert "AT_ONCE = 1" in source(notebook, "parameters")
    with pytest.raises(ValueError, match="no line SCALES = "):
        execute.assign(notebook, "SCALES = 1")


# -- the first cell: installation ------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_it_installs_what_the_package_needs_but_pytorch(name: str) -> None:
    """Would catch a dependency that came or rose since; and PyTorch among them, which Colab's own would give way to."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    notebook = nbformat.read(NOTEBOOK.with_name(f"{name}.ipynb"), as_version=4)
    wanted = [*project["dependencies"], *extras["study"], *extras["hub"]]
    listed = re.findall(r'^    "([^"]+)",$', source(notebook, "install"), re.MULTILINE)
    assert listed == [need for need in wanted if not need.startswith("torch")]


@pytest.fixture
def not_installed(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """As if Rhapsode were not there; the commands that were run."""
    ran: list[list[str]] = []
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    monkeypatch.setattr(subprocess, "run", lambda command, check: ran.append(command))
    return ran


def test_the_package_is_installed_without_its_dependencies(
    notebook: nbformat.NotebookNode, not_installed: list[list[str]], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """pip would otherwise replace the environment's PyTorch by the one that the package names."""
    (tmp_path / "notebooks").mkdir()
    monkeypatch.chdir(tmp_path / "notebooks")
    exec(source(notebook, "install"), {})
    small, package = not_installed
    assert package[-2:] == ["--no-deps", ".."]
    assert not any(word.startswith("torch") for word in small)
    assert {command[0] for command in not_installed} == {sys.executable}


def test_a_missing_wheel_is_told(
    notebook: nbformat.NotebookNode, not_installed: list[list[str]], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    code = source(notebook, "install").replace('RHAPSODE = ".."', 'RHAPSODE = "rhapsode-0.1.0-py3-none-any.whl"')
    with pytest.raises(FileNotFoundError, match=r"rhapsode-0\.1\.0-py3-none-any\.whl: not here"):
        exec(code, {})
    assert not_installed == []


def test_what_is_installed_stays(notebook: nbformat.NotebookNode, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: pytest.fail("something was run"))
    exec(source(notebook, "install"), {})


# -- the second cell: data -------------------------------------------------------------------------------------------


def data_cell(notebook: nbformat.NotebookNode, folder: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """The names that the cell leaves, run in a folder."""
    folder.mkdir(exist_ok=True)
    monkeypatch.chdir(folder)
    names: dict[str, Any] = {"Path": Path}
    exec(source(notebook, "data"), names)
    return names


def no_network(location: str) -> Any:
    raise OSError(f"{location}: no answer")


def test_the_course_s_files_come_first_and_the_larger_of_them(
    notebook: nbformat.NotebookNode, course_files: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Would catch a download where the data lie beside it, and training on the handout's few texts."""
    monkeypatch.setattr(hub, "download", lambda location: pytest.fail("downloaded"))
    folder = course_files[0].parent
    for name in ("train", "valid"):
        (folder / f"untokenized_{name}_stories.json").write_text('["A story."]')
    (folder / "big_train_stories.json").write_text("[" + " " * 10_000_000 + "]")  # without its validation file
    names = data_cell(notebook, folder, monkeypatch)
    assert (names["train_data"], names["valid_data"]) == ("tiny_train_stories.json", "tiny_valid_stories.json")


def test_tinystories_is_downloaded_once_and_cut(
    notebook: nbformat.NotebookNode, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    """A break in the middle of writing must not leave a file that the next run takes for the whole."""
    texts = storyworld.sample_batch(0, 120)
    (tmp_path / "stories.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    asked: list[str] = []

    def download(location: str) -> Any:
        asked.append(location)
        return [(tmp_path / "stories.jsonl", "stories.jsonl")]

    monkeypatch.setattr(hub, "download", download)
    monkeypatch.setenv("RHAPSODE_CACHE", str(tmp_path / "cache"))
    (tmp_path / "beside").mkdir()
    (tmp_path / "beside" / "tinystories-train.part").write_text('{"text": "half a st')
    names = data_cell(notebook, tmp_path / "beside", monkeypatch)
    assert (names["train_data"], names["valid_data"]) == ("tinystories-train.jsonl", "tinystories-valid.jsonl")
    assert sorted(asked) == ["hub:tinystories:train", "hub:tinystories:valid"]
    names["download"]("train", 7)
    kept = [json.loads(line)["text"] for line in Path("tinystories-train.jsonl").read_text().splitlines()]
    assert kept == [text.strip() for text in texts[:7]] or kept == list(texts[:7])
    assert (tmp_path / "beside" / "my_tokenizer" / "tokenizer.json").exists()
    data_cell(notebook, tmp_path / "beside", monkeypatch)
    assert len(asked) == 3
    capsys.readouterr()


def test_without_a_network_it_is_storyworld(
    notebook: nbformat.NotebookNode, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setattr(hub, "download", no_network)
    (tmp_path / "beside" / "my_tokenizer").mkdir(parents=True)
    names = data_cell(notebook, tmp_path / "beside", monkeypatch)
    assert (names["train_data"], names["valid_data"]) == ("storyworld", "storyworld:valid")
    assert "No TinyStories (hub:tinystories:valid: no answer)" in capsys.readouterr().out
