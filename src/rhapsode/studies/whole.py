"""A study from request to report: read the data, decide the scale, run the cells, write the page."""

import os
import platform
import shlex
from dataclasses import fields
from pathlib import Path
from typing import Any, NamedTuple

import torch

import rhapsode
from rhapsode.data import DataRequest, open_data
from rhapsode.machine import choose_device, commit, device_name, graph_capture, processor
from rhapsode.progress import say
from rhapsode.recipe.changes import build
from rhapsode.run import check_free
from rhapsode.sources import SourceConfig
from rhapsode.studies.data import MOST_VALID_STORIES, valid_view
from rhapsode.studies.directory import Study, devices_of
from rhapsode.studies.engines import RayEngine, engine_named
from rhapsode.studies.plans import StudyRequest, plan_of
from rhapsode.studies.report.chapters import Chapter, Table, chapters_of
from rhapsode.studies.report.page import check_extras, settings_table, write_report
from rhapsode.studies.runner import Interrupted, run_cells
from rhapsode.studies.storage import put_study
from rhapsode.studies.timing import fit_scale
from rhapsode.tokens import BatchConfig, Batcher


class Finished(NamedTuple):
    """A study that was run to its end. failed: what went wrong, by the name of the cell; page: the report."""

    study: Study
    failed: dict[str, str]
    page: Path

    @property
    def chapters(self) -> dict[str, Chapter]:
        """What was found, by the names of the plan's parts: sentences, figures, tables, completions."""
        return chapters_of(self.study)

    @property
    def settings(self) -> Table:
        """What it was run with, and on."""
        return settings_table(self.study, _facts())


def run_study(
    request: StudyRequest,
    out: Path,
    jobs: int = 1,
    threads: int | None = None,
    device: str = "auto",
    publish: Path | None = None,
    engine: str = "local",
    address: str | None = None,
    storage: str | None = None,
    together: bool = False,
    cuda_graph: bool | None = None,
) -> Finished:
    """Starts the study in `out` or resumes it, and writes its report; progress goes to stderr.

    jobs: cells at once, which share the threads. engine, address, storage: what runs the cells (engines.py), where a
    Ray cluster is, and where cells on other machines keep their files if not in `out`. device: as in `rhapsode train`;
    a study that is gone on with stays on the device it was started on. together: cells of one shape, seeds above all,
    are trained side by side in one process, and count as one of the jobs. cuda_graph: whether a step is one launch of
    the GPU (docs/gpu.md); None: as the study was begun, by default wherever that can be. Raises ValueError or OSError
    with one line before anything is trained, and Interrupted after Ctrl-C, once the cells have saved.
    """
    check_extras()
    if cuda_graph:
        graph_capture(choose_device(device), cuda_graph)
    plan = plan_of(request)  # what is wrong with the request is told before data are read
    runs = engine_named(engine, address, storage)
    if isinstance(runs, RayEngine) and jobs == 1:
        jobs = len(plan.cells)  # Ray knows how many there is room for
    jobs = min(jobs, len(plan.cells))
    threads_before = torch.get_num_threads()
    threads_each = max(1, (threads or threads_before) // jobs) if runs.shares_machine else threads or 1
    torch.set_num_threads(min(threads_before, threads_each))
    try:
        study = _open(request, out, device) if (out / "study.json").exists() else _begin(request, out, jobs, device)
        with study.lock():
            if cuda_graph is not None and study.cuda_graph != cuda_graph:
                study.note(cuda_graph=cuda_graph)
            study.about |= {"jobs": jobs, "together": together}
            side = ", those of one shape side by side" if together else ""
            where = f"{jobs} at once on {device_name(study.device)} with {threads_each} threads each{side}"
            say(f"study directory: {out}; {len(study.plan.cells)} cells, {where}")
            try:
                if storage is not None:
                    put_study(study.path, storage)
                failed = run_cells(study, jobs, threads_each, runs, storage, together)
            except Interrupted:
                raise Interrupted(f"stopped and saved; resume it with: {study.about['command']}") from None
            page = write_report(study, failed, _facts(), publish)
    finally:
        torch.set_num_threads(threads_before)
        runs.close()
    say(f"report: {page} (and report.md, points.csv, figures/)")
    if failed:
        say(f"{len(failed)} of {len(study.plan.cells)} cells failed; run the same command again to retry them")
    return Finished(study, failed, page)


def _open(request: StudyRequest, out: Path, device: str) -> Study:
    """The study in `out`, to resume on the device that it was started on: times of two devices cannot be compared."""
    study = Study.open(out)
    study.check_same(request)
    chosen = choose_device(device)
    if device not in ("auto", study.device):
        raise ValueError(
            f"{out} holds a study on {study.device}, not {device}, and times on two devices cannot be compared;"
            f" use --device {study.device} or choose another directory with --out"
        )
    try:
        choose_device(study.device)
    except ValueError:
        raise ValueError(
            f"{out} holds a study that was started on {study.device}, which is not on this machine; it has {chosen}."
            " Times on two devices cannot be compared: resume it where it was started, or choose another directory with"
            " --out"
        ) from None
    if chosen != study.device:
        say(f"continuing on {study.device}, where the study was started; {chosen} is available too, for another study")
    before = {name for result in study.results() for name in devices_of(result)} - {device_name(study.device)}
    if before:
        say(f"finished cells ran on {', '.join(sorted(before))}, the others will run on {device_name(study.device)}")
    return study


def _begin(request: StudyRequest, out: Path, jobs: int, device: str) -> Study:
    chosen = choose_device(device)
    check_free(out)
    reading = SourceConfig(request.split, request.separator, request.field, request.format)
    valid = (request.valid,) if request.valid else ()
    data = open_data(DataRequest(request.data, valid, request.tokenizer, request.vocab_size, reading), request.seed)
    plan = plan_of(request)
    for batch in {tuple(cell.sections["batch"].items()) for cell in plan.cells.values()}:
        Batcher(data.train, build(BatchConfig, dict(batch)), request.seed)  # raises what training would
    stories = MOST_VALID_STORIES if request.valid_stories is None else request.valid_stories
    scale = 1.0 if request.scale is None else request.scale
    if request.minutes is not None:
        lenient = request.valid_stories is None

        found = fit_scale(
            lambda scale: plan_of(request, scale),
            data.train,
            data.valid,
            60 * request.minutes,
            stories,
            lenient,
            jobs,
            chosen,
        )
        scale, stories = found.scale, found.valid_stories
        say(
            f"scale {scale:g}, {stories:,} validation stories: about {found.seconds / 60:.1f} of {request.minutes:g}"
            " minutes"
        )
    view = valid_view(data.valid, stories, plan.valid_tokens, request.seed)
    about: dict[str, Any] = {
        "request": {field.name: getattr(request, field.name) for field in fields(request)},
        "command": command_of(request, out, device),
        "scale": scale,
        "valid_stories": stories,
        "valid_sequences": view.num_stories,
        "jobs": jobs,
        "device": chosen,
        "data": {
            **data.about,
            "num_stories": data.train.num_stories,
            "valid_stories_there": data.valid.num_stories,
            "valid_description": data.valid.description if "valid" in data.about else "held out of the training data",
        },
        "tokenizer_fingerprint": data.tokenizer.fingerprint,
        "tokenizer_kind": data.tokenizer.kind,
        "vocab_size": data.tokenizer.vocab_size,
    }
    return Study.create(out, about, data.tokenizer)


def command_of(request: StudyRequest, out: Path, device: str = "auto") -> str:
    """The command that makes the study again, without what is as by default."""
    words = ["rhapsode", "study", request.study, *request.data]
    named = {"assignments": "set"}
    for field in fields(StudyRequest):
        value = getattr(request, field.name)
        if field.name in ("study", "data") or value == field.default:
            continue
        option = f"--{named.get(field.name, field.name).replace('_', '-')}"
        for item in value if isinstance(value, tuple) else (value,):
            words += [option, f"{item:g}" if isinstance(item, float) else str(item)]
    if out != Path("studies") / request.study:
        words += ["--out", str(out)]
    if device != "auto":
        words += ["--device", device]
    return shlex.join(words)


def _facts() -> dict[str, str]:
    """Machine, versions and commit, as the report tells them."""
    system = f"{platform.system()} {platform.machine()}"
    versions = f"rhapsode {rhapsode.__version__}, PyTorch {torch.__version__}, Python {platform.python_version()}"
    facts = {"machine": f"{processor()}, {os.cpu_count()} cores, {system}", "versions": versions}
    found = commit()
    return facts | ({"commit": found} if found else {})
