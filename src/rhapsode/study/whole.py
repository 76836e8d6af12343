"""A study from request to report: read the data, decide the scale, run the cells, write the page."""

import os
import platform
import shlex
import subprocess
from dataclasses import fields
from pathlib import Path
from typing import Any

import torch

import rhapsode
from rhapsode import start
from rhapsode.progress import say
from rhapsode.recipe.changes import build
from rhapsode.study.data import VALID_STORIES, valid_view
from rhapsode.study.directory import Study
from rhapsode.study.plans import Request, plan_of
from rhapsode.study.report import check_extras, write_report
from rhapsode.study.runner import Interrupted, run_cells
from rhapsode.study.timing import fit
from rhapsode.tokens import BatchConfig, Batcher

EXIT_STOPPED = 130
EXIT_FAILED = 1  # a report there is, but not of all cells


def run_study(request: Request, out: Path, jobs: int, threads: int | None, publish: Path | None) -> None:
    """Begins the study in `out` or goes on with it, and writes its report; prints the page's path to stdout.

    Raises ValueError or OSError with one line before anything is trained; exits with 1 where cells failed, and with
    130 after Ctrl-C.
    """
    check_extras()
    plan = plan_of(request)  # what is wrong with the request is told before data are read
    jobs = min(jobs, len(plan.cells))
    threads_each = max(1, (threads or torch.get_num_threads()) // jobs)
    torch.set_num_threads(threads_each)
    if (out / "study.json").exists():
        study = Study.open(out)
        study.check_same(request)
    else:
        study = _begin(request, out, jobs)
    with study.lock():
        study.about["jobs"] = jobs
        say(f"study directory: {out}; {len(study.plan.cells)} cells, {jobs} at once with {threads_each} threads each")
        try:
            failed = run_cells(study, jobs, threads_each)
        except Interrupted:
            say(f"stopped and saved; go on with: {study.about['command']}")
            raise SystemExit(EXIT_STOPPED) from None
        page = write_report(study, failed, _facts(study), publish)
    say(f"report: {page} (and report.md, points.csv, figures/)")
    print(page)
    if failed:
        say(f"{len(failed)} of {len(study.plan.cells)} cells failed; the same command tries them again")
        raise SystemExit(EXIT_FAILED)


def _begin(request: Request, out: Path, jobs: int) -> Study:
    start.check_free(out)
    wanted = start.Request(
        data=request.data,
        valid=request.valid,
        tokenizer=request.tokenizer,
        vocab_size=request.vocab_size,
        split=request.split,
        separator=request.separator,
        field=request.field,
        format=request.format,
    )
    data = start.open_data(wanted, request.seed)
    plan = plan_of(request)
    for batch in {tuple(cell.sections["batch"].items()) for cell in plan.cells.values()}:
        Batcher(data.train, build(BatchConfig, dict(batch)), request.seed)  # raises what training would
    stories = VALID_STORIES if request.valid_stories is None else request.valid_stories
    scale = 1.0 if request.scale is None else request.scale
    if request.minutes is not None:
        lenient = request.valid_stories is None

        found = fit(
            lambda scale: plan_of(request, scale), data.train, data.valid, 60 * request.minutes, stories, lenient, jobs
        )
        scale, stories = found.scale, found.valid_stories
        say(
            f"scale {scale:g}, {stories:,} validation stories: about {found.seconds / 60:.1f} of {request.minutes:g}"
            " minutes"
        )
    view = valid_view(data.valid, stories, plan.valid_tokens, request.seed)
    about: dict[str, Any] = {
        "request": {field.name: getattr(request, field.name) for field in fields(request)},
        "command": command_of(request, out),
        "scale": scale,
        "valid_stories": stories,
        "valid_sequences": view.num_stories,
        "jobs": jobs,
        "data": {
            **data.about,
            "num_stories": data.train.num_stories,
            "valid_stories_there": data.valid.num_stories,
            "valid_description": data.valid.description if "valid" in data.about else "held out of the same",
        },
        "tokenizer_fingerprint": data.tokenizer.fingerprint,
        "tokenizer_kind": data.tokenizer.kind,
        "vocab_size": data.tokenizer.vocab_size,
    }
    return Study.create(out, about, data.tokenizer)


def command_of(request: Request, out: Path) -> str:
    """The command that makes the study again, without what is as by default."""
    words = ["rhapsode", "study", request.study, *request.data]
    named = {"assignments": "set"}
    for field in fields(Request):
        value = getattr(request, field.name)
        if field.name in ("study", "data") or value == field.default:
            continue
        option = f"--{named.get(field.name, field.name).replace('_', '-')}"
        for item in value if isinstance(value, tuple) else (value,):
            words += [option, f"{item:g}" if isinstance(item, float) else str(item)]
    if out != Path("studies") / request.study:
        words += ["--out", str(out)]
    return shlex.join(words)


def _facts(study: Study) -> dict[str, str]:
    """Machine, versions and commit, as the report tells them."""
    system = f"{platform.system()} {platform.machine()}"
    versions = f"rhapsode {rhapsode.__version__}, PyTorch {torch.__version__}, Python {platform.python_version()}"
    facts = {"machine": f"{_processor()}, {os.cpu_count()} cores, {system}", "versions": versions}
    commit = _commit()
    return facts | ({"commit": commit} if commit else {})


def _processor() -> str:
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as stream:
            names = [line.partition(":")[2].strip() for line in stream if line.startswith("model name")]
    except OSError:
        names = []
    return names[0] if names else platform.processor() or "unknown processor"


def _commit() -> str | None:
    """The commit of the checkout that the package runs from; None where it is installed from elsewhere."""
    here = Path(__file__).resolve()

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(here.parent), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()

    try:
        git("ls-files", "--error-unmatch", str(here))
        changed = " with uncommitted changes" if git("status", "--porcelain", "--", str(here.parents[1])) else ""
        return git("rev-parse", "--short=12", "HEAD") + changed
    except (OSError, subprocess.CalledProcessError):
        return None
