"""The plan of the house, as far as a program can read it: who imports whom, and what nobody may use."""

import ast
import re
import sys
from collections import Counter
from pathlib import Path

import pytest

SOURCE = Path(__file__).resolve().parents[1] / "src" / "rhapsode"
FILES = sorted(SOURCE.rglob("*.py"))

# A room may import, at the top of its files, the rooms on its line, and what is in itself.
MAY_IMPORT: dict[str, set[str]] = {
    "figure": set(),
    "files": set(),
    "interruption": set(),
    "kernels": set(),
    "machine": set(),
    "minimal_pairs": set(),
    "recorded": {"terminal"},
    "seeds": set(),
    "terminal": set(),
    "textbook": set(),
    "threads": set(),
    "progress": {"terminal"},
    "tensors": {"terminal"},
    "state": {"files", "tensors"},
    "fold": {"state"},
    "cells": {"fold", "kernels"},
    "copying": {"fold", "kernels", "state"},
    "model": {"cells", "copying", "fold", "kernels", "seeds", "state"},
    "tokenizer": {"files", "progress"},
    "sources": {"files", "progress"},
    "storyworld": {"figure", "files", "model", "progress", "seeds", "sources", "state", "tokenizer"},
    "tokens": {"files", "progress", "recorded", "seeds", "sources", "storyworld", "tokenizer"},
    "decode": {"cells", "files", "fold", "machine", "model", "seeds", "state", "tokenizer"},
    "data": {"files", "progress", "recorded", "sources", "storyworld", "tokenizer", "tokens"},
    "preparing": {"arguments", "data", "progress", "sources", "storyworld", "tokenizer", "tokens"},
    "evaluation": {"model", "state", "threads", "tokens"},
    "inspection": {"cells", "figure", "files", "kernels", "model", "results", "state", "tokenizer"},
    "recipe": {"model", "recorded", "seeds", "tokens"},
    "run": {"__init__", "files", "model", "progress", "recipe", "recorded", "tensors", "tokenizer"},
    "training": {
        *(
            "__init__",
            "data",
            "decode",
            "evaluation",
            "files",
            "fold",
            "interruption",
            "kernels",
            "machine",
            "model",
            "progress",
            "recipe",
            "recorded",
            "run",
            "seeds",
        ),
        *("sources", "state", "storyworld", "terminal", "threads", "tokenizer", "tokens"),
    },
    "course": {
        *("files", "fold", "kernels", "machine", "model", "progress", "state", "terminal", "threads", "tokenizer"),
    },
    "bench": {"inspection", "machine", "model", "progress"},
    "planning": {"inspection", "model", "recipe"},
    "studies": {
        *("__init__", "data", "decode", "evaluation", "figure", "files", "machine", "model", "progress", "recipe"),
        *("recorded", "run", "seeds", "sources", "storyworld", "terminal", "threads"),
        *("tokenizer", "tokens", "training"),
    },
    "checking": {
        *("course", "export", "files", "model", "progress", "recorded", "run", "sources", "state"),
        *("studies", "tensors", "tokenizer", "tokens"),
    },
    "results": {"state"},
    "notebook": {"training"},
    "scoring": {
        *("data", "decode", "evaluation", "model", "progress", "run", "sources", "storyworld", "tokens", "training"),
    },
    "trained": {
        "decode",
        "evaluation",
        "inspection",
        "machine",
        "model",
        "recipe",
        "results",
        "run",
        "state",
        "tokenizer",
    },
    "chat": {"decode", "files", "inspection", "interruption", "progress", "terminal", "tokenizer", "trained"},
    "arguments": {"data", "sources", "tokenizer"},
    "export": {"model", "tokenizer"},
    "packaged": {"export", "files", "run", "tokenizer"},
    "api": {
        *(
            "arguments",
            "data",
            "decode",
            "evaluation",
            "files",
            "machine",
            "model",
            "notebook",
            "progress",
            "recipe",
            "run",
            "scoring",
            "seeds",
        ),
        *("sources", "storyworld", "terminal", "tokens", "threads", "tokenizer", "trained", "training"),
    },
    "serve": {
        *("__init__", "api", "decode", "inspection", "model", "progress", "run", "storyworld", "terminal", "threads"),
        *("tokenizer", "trained"),
    },
    "cli": set(),  # its files import what they run inside of the verbs; see below
}
NOT_BELOW = {"api", "cli", "serve"}
# Public names that more than one room defines, with the one meaning that they have in all of them.
IN_SEVERAL_ROOMS = {
    **dict.fromkeys(("RNN", "RNNCell", "SelfAttention", "DEVICE", "generate", "train"), "the course's contract"),
    **dict.fromkeys(
        (
            *(
                "ACTIVATIONS",
                "BlockState",
                "CopyState",
                "LanguageModel",
                "RMSNorm",
                "SquaredReLU",
                "StackedModel",
                "State",
            ),
            *("attend", "gated_states", "pair_rows", "rms_norm", "squared_relu"),
        ),
        "the textbook's oracle of the same thing",
    ),
    **dict.fromkeys(("bench", "check", "evaluate", "prepare"), "a verb and the function that it calls"),
    **dict.fromkeys(("app", "main"), "of each command line"),
    "FORMAT_VERSION": "of each kind of file",
}


def room_of(file: Path) -> str:
    return file.relative_to(SOURCE).parts[0].removesuffix(".py")


def imports_of(file: Path, everywhere: bool = False) -> set[str]:
    """The full names that a file imports, at its top level or everywhere; imports for types only are left out."""
    tree = ast.parse(file.read_text(encoding="utf-8"))
    found: set[str] = set()
    for node in ast.walk(tree) if everywhere else tree.body:
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}: relative import"
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def rooms_imported(file: Path, everywhere: bool = False) -> set[str]:
    parts = [name.split(".") for name in imports_of(file, everywhere) if name.split(".")[0] == "rhapsode"]
    known = {room_of(path) for path in FILES}
    return {part[1] if len(part) > 1 and part[1] in known else "__init__" for part in parts} - {room_of(file)}


def test_every_room_is_named() -> None:
    """Would catch a new room that nobody has given a place."""
    assert {room_of(file) for file in FILES} - {"__init__", "__main__"} == MAY_IMPORT.keys()


def test_the_page_has_every_room_once() -> None:
    """Would catch a tree of files in the docs that is not the tree."""
    page = (SOURCE.parents[1] / "docs" / "architecture.md").read_text(encoding="utf-8")
    tree = page.split("src/rhapsode/\n")[1].split("\ntests/")[0]
    named = [line.split()[0] for line in tree.splitlines() if re.match(r"    [a-z_]+(\.py|/)", line)]
    there = {f"{path.name}/" if path.is_dir() else path.name for path in SOURCE.iterdir()} - {
        "__pycache__/",
        "py.typed",
    }
    assert sorted(named) == sorted(there)


@pytest.mark.parametrize("room", MAY_IMPORT.keys() - {"cli"})
def test_imports_go_one_way(room: str) -> None:
    """Would catch a model that knows how it is trained, and a ring of imports."""
    for file in FILES:
        if room_of(file) == room:
            beyond = rooms_imported(file) - MAY_IMPORT[room]
            assert not beyond, f"{file.relative_to(SOURCE)} imports {', '.join(sorted(beyond))}"


def test_no_room_imports_those_above_it() -> None:
    """Would catch a room that this file does not know yet and that is used from below."""
    for file in FILES:
        if room_of(file) not in NOT_BELOW | {"__init__", "__main__"}:
            assert not rooms_imported(file, everywhere=True) & NOT_BELOW, file


def defined_in(file: Path) -> set[str]:
    """The public classes, functions and constants at the top level of a file."""
    found: set[str] = set()
    for node in ast.parse(file.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.ClassDef | ast.FunctionDef):
            found.add(node.name)
        elif isinstance(node, ast.Assign | ast.AnnAssign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            found |= {target.id for target in targets if isinstance(target, ast.Name)}
    return {name for name in found if not name.startswith("_")}


def test_one_word_has_one_meaning() -> None:
    """Would catch a second Outcome, Shape, parse or draw, which a reader must tell apart by where it was imported."""
    rooms: dict[str, set[str]] = {}
    for file in FILES:
        for name in defined_in(file):
            rooms.setdefault(name, set()).add(room_of(file))
    several = {name: sorted(found) for name, found in rooms.items() if len(found) > 1}
    assert not {name: found for name, found in several.items() if name not in IN_SEVERAL_ROOMS}
    assert several.keys() == IN_SEVERAL_ROOMS.keys()  # no exception that nothing needs


def test_textbook_stands_alone() -> None:
    """Would catch an oracle that shares code with what it judges."""
    for file in FILES:
        if room_of(file) == "textbook":
            assert not rooms_imported(file, everywhere=True), file
        elif room_of(file) != "cli":
            assert "textbook" not in rooms_imported(file, everywhere=True), file


def test_command_line_imports_what_it_runs() -> None:
    """Would catch `--help` that waits for torch, and a verb that does by itself what Python cannot."""
    for file in (SOURCE / "cli").glob("*.py"):
        roots = {name.split(".")[0] for name in imports_of(file)}
        assert roots <= set(sys.stdlib_module_names) | {"typer", "rhapsode"}, file
        assert rooms_imported(file) <= {"__init__", "terminal", "textbook"}, file
        beyond = rooms_imported(file, everywhere=True) - {
            *("__init__", "api", "bench", "chat", "decode", "inspection", "packaged", "planning", "preparing"),
            *("progress", "recipe", "run", "seeds", "serve", "storyworld", "terminal", "textbook", "threads"),
            "training",
        }
        assert not beyond, f"{file} imports {beyond}"


def test_nobody_uses_what_was_to_be_written() -> None:
    """Would catch nn.RNN and its like in src/, where the point is to have written them; and pickle."""
    for file in FILES:
        tree = ast.parse(file.read_text(encoding="utf-8"))
        for node in ast.walk(tree):
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name | ast.Attribute):
                owner = node.value.id if isinstance(node.value, ast.Name) else node.value.attr
                forbidden = {"RNN", "RNNCell", "LSTM", "GRU", "MultiheadAttention"}
                assert not (owner == "nn" and node.attr in forbidden), f"{file}:{node.lineno}"
        assert not {name.split(".")[0] for name in imports_of(file, True)} & {"pickle", "dill", "joblib"}, file
        assert not any(name.startswith("torch.nn.RNN") for name in imports_of(file, True)), file


def test_weights_are_never_unpickled() -> None:
    """Would catch torch.load and torch.save, which run or write pickles."""
    for file in FILES:
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "torch":
                assert node.attr not in ("save",) or room_of(file) == "course", f"{file}:{node.lineno}"
            if isinstance(node, ast.Call) and ast.unparse(node.func) == "torch.load":
                safe = any(
                    keyword.arg == "weights_only" and ast.unparse(keyword.value) == "True" for keyword in node.keywords
                )
                assert safe, f"{file}:{node.lineno}"


def test_project_works_without_its_surroundings() -> None:
    """Would catch a path out of the project in the package."""
    for file in SOURCE.rglob("*"):
        if file.is_file() and file.suffix in (".py", ".txt", ".json", ".html", ".jinja"):
            assert "../shared" not in file.read_text(encoding="utf-8"), file


def test_no_two_scripts_have_one_name() -> None:
    """Would catch a helper of the tests that hides a benchmark's of the same name: both are imported by it alone."""
    root = Path(__file__).resolve().parents[1]
    names = [file.stem for folder in ("tests", "benchmarks") for file in sorted((root / folder).rglob("*.py"))]
    assert len(names) > 100
    assert [name for name, count in Counter(names).items() if count > 1] == ["conftest"]
