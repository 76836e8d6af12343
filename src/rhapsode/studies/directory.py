"""A study on disk.

study.json            what was asked, what was decided (scale, validation stories, device), data
tokenizer/            the tokenizer of all its cells
cells/NAME/           a run directory each; result.json in it is written last, and only then is the cell finished
logs/NAME.txt         what the cell's process said
report.html, report.md, points.csv, figures/, and SHA256SUMS, the digests of these
.lock                 held by the process that runs the study
"""

import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rhapsode.data import absolute, reopen_data
from rhapsode.files import CHECKSUMS, sweep, write_checksums, write_text
from rhapsode.progress import say
from rhapsode.recorded import NUMBER, RUN_SCHEMA, check_schema, check_seal, read_config, read_sealed, read_versioned
from rhapsode.run import as_json, file_digests, held, recorded_tokenizer, whole_directory
from rhapsode.studies.plans import Cell, StudyPlan, StudyRequest, plan_of
from rhapsode.tokenizer import Tokenizer
from rhapsode.tokens import TokenStore

FORMAT_VERSION = 1
REPORT_TITLE = "the report of a study"
REPORT_FILES = ("report.html", "report.md", "points.csv")
STUDY = {
    "request": dict,
    "command": str,
    "scale": NUMBER,
    "valid_stories": int,
    "valid_sequences": int,
    "tokenizer_fingerprint": str,
    "tokenizer_files?": dict,
    "tokenizer_kind": str,
    "vocab_size": int,
    "data": RUN_SCHEMA["data?"] | {"num_stories": int, "valid_stories_there": int, "valid_description": str},
}


class Study:
    """A study directory; about: the contents of study.json."""

    def __init__(self, path: Path, about: dict[str, Any]) -> None:
        self.path, self.about = path, about
        where = str(path / "study.json")
        check_schema(about, STUDY, where)
        request = {name: _tuples(value) for name, value in about["request"].items()}
        if "format" not in request:  # begun when these two had defaults in words
            defaults = {"separator": "<|endoftext|>", "field": "text"}
            request |= {name: None for name, words in defaults.items() if request.get(name) == words}
        self.request = read_config(StudyRequest, request, where, "request")
        self.plan: StudyPlan = plan_of(self.request, about["scale"])

    @classmethod
    def create(cls, path: Path, about: dict[str, Any], tokenizer: Tokenizer) -> "Study":
        """A new study; study.json is written last, so that a directory with it is whole."""
        about = {"format_version": FORMAT_VERSION, **about}
        with whole_directory(path) as temporary:
            tokenizer.save(temporary / "tokenizer")
            about["tokenizer_files"] = file_digests(temporary / "tokenizer")
            write_text(temporary / "study.json", as_json(about))
        return cls(path, about)

    @classmethod
    def open(cls, path: Path) -> "Study":
        """Opens a study directory; ValueError where it is damaged or of another version."""
        return cls(path, read_versioned(path / "study.json", FORMAT_VERSION))

    def tokenizer(self) -> Tokenizer:
        """The tokenizer of all cells; ValueError where the folder holds another one."""
        recorded = self.about["tokenizer_fingerprint"], self.about.get("tokenizer_files"), self.about["vocab_size"]
        return recorded_tokenizer(self.path / "tokenizer", *recorded, self.path / "study.json")

    def check_same(self, request: StudyRequest) -> None:
        """Raises ValueError with one line where the study was begun with another request."""
        begun, asked = asdict(self.request), asdict(request)
        for name in asked:
            before, now = begun[name], asked[name]
            same_place = name == "data" and absolute(before) == absolute(now)
            same_place |= name == "valid" and absolute([before or ""]) == absolute([now or ""])
            if before != now and not same_place:
                raise ValueError(
                    f"{self.path} holds a study with {name} {before!r}, not {now!r};"
                    " resume that one or choose another directory with --out"
                )

    @property
    def device(self) -> str:
        """Where its cells train: `cpu`, `cuda` or `mps`. Studies that do not say so trained on the CPU."""
        return str(self.about.get("device", "cpu"))

    @property
    def cuda_graph(self) -> bool | None:
        """Whether a step of its cells is one launch of the GPU; None: wherever that can be."""
        wanted = self.about.get("cuda_graph")
        return None if wanted is None else bool(wanted)

    def note(self, **how: Any) -> None:
        """Writes down how its cells are to be trained from now on."""
        self.about = {**self.about, **how}
        write_text(self.path / "study.json", as_json(self.about))

    def stores(self) -> tuple[TokenStore, TokenStore]:
        """The (train, valid) stores of all its cells; ValueError where the data are others by now."""
        return reopen_data(self.about["data"], self.tokenizer(), self.request.seed, str(self.path))

    def cell_path(self, cell: Cell) -> Path:
        return self.path / "cells" / cell.name

    def log_path(self, cell: Cell) -> Path:
        return self.path / "logs" / f"{cell.name}.txt"

    def identity(self, cell: Cell) -> str:
        """SHA-256 of all that decides the cell's result, but for the machine."""
        data = self.about["data"]
        parts = [cell.sections, cell.completions, self.about["valid_stories"], self.plan.valid_tokens]
        parts += [data["train_fingerprint"], data["valid_fingerprint"], self.about["tokenizer_fingerprint"]]
        parts += [cell.task] if cell.task else []
        return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()

    def result(self, cell: Cell) -> dict[str, Any] | None:
        """What a finished cell wrote at its end; None for one that is not finished, or was another cell."""
        if not self.result_file(cell).is_file():
            return None
        try:
            result = self.written(cell)
        except ValueError as error:
            say(f"{error}; the cell is finished again")
            return None
        return result if result.get("cell") == self.identity(cell) else None

    def result_file(self, cell: Cell) -> Path:
        return self.cell_path(cell) / "result.json"

    def written(self, cell: Cell) -> dict[str, Any]:
        """What some cell wrote into the file of this one's result; ValueError where it is damaged."""
        file = self.result_file(cell)
        result = read_sealed(file)
        check_seal(result, file)
        return result

    def results(self) -> list[dict[str, Any]]:
        """The results of all finished cells, in the order of the plan."""
        return [result for cell in self.plan.cells.values() if (result := self.result(cell))]

    def finish(self, cell: Cell, result: dict[str, Any]) -> None:
        """Marks the cell as finished, in one rename."""
        write_text(self.result_file(cell), as_json({"cell": self.identity(cell), **result}))

    def report_files(self) -> list[Path]:
        """The files of the report that are there."""
        named = [self.path / name for name in REPORT_FILES]
        return [file for file in (*named, *sorted((self.path / "figures").glob("[!.]*"))) if file.is_file()]

    def seal_report(self) -> None:
        """Writes SHA256SUMS, the digests of the report's files."""
        write_checksums(self.path, REPORT_TITLE, self.report_files())

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Holds the study for this process; raises BlockingIOError where another one runs it.

        Sweeps up what killed processes left.
        """
        with held(self.path, "another process is running this study"):
            sweep(self.path, ("study.json", CHECKSUMS, *REPORT_FILES))
            sweep(self.path / "figures", (file.name for file in self.report_files()))
            for cell in self.plan.cells.values():
                sweep(self.cell_path(cell), ("result.json",))
            yield


def devices_of(result: dict[str, Any]) -> set[str]:
    """The devices that a cell trained on, by name: two where it was cut off and went on on another GPU."""
    device = result.get("device", "cpu")
    return {device, result.get("device_begun", device)}


def _tuples(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value
