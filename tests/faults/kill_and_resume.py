"""Kills a training run again and again and compares its end with that of a run that was never stopped.

    python tests/faults/kill_and_resume.py > docs/resume.md

Each kill is a SIGKILL to `rhapsode train` at a moment drawn from a seed, from start-up on; then the same command goes
on with --resume. The run has all that must be saved: Muon's momentum, AdamW's moments, dropout, carried state, a
place in a shuffled epoch, best and last checkpoint. It writes a checkpoint after each step.
"""

import hashlib
import json
import math
import os
import platform
import random
import re
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from rhapsode import storyworld
from rhapsode.run import Run
from rhapsode.tensors import metadata_in

KILLS = 20
AT_START = (0, 1, 8, 14)  # these kills come at a moment of start-up, the others after some more checkpoints
SEED = 0
STEPS = 240
VALIDATIONS = 30
SETTINGS = {
    "kind": "stacked",
    "embed_dim": 16,
    "hidden_dim": 24,
    "key_dim": 8,
    "value_dim": 12,
    "num_layers": 2,
    "attention": "last",
    "dropout": 0.1,
    "pair_embeddings": 500,
    "window": 32,
    "batch_size": 4,
    "carry_state": "true",
    "optimizer": "muon",
    "weight_decay": 0.1,
    "checkpoint_seconds": 0,
    "validations": VALIDATIONS,
}


@dataclass(frozen=True)
class Kill:
    """One kill: seconds after the process began, the step it had resumed at (None: it did not come that far), what
    it was doing, by the files it left, and the step of the checkpoint that remained (None: none yet).
    """

    seconds: float
    gone_on_from: int | None
    doing: str
    left: int | None


class Life:
    """A process that trains in `out`, watched through its files."""

    def __init__(self, folder: Path, out: Path, *more: str) -> None:
        self.out, self.log = out, out / "log.txt"
        self.log_size = self.log.stat().st_size if self.log.exists() else 0
        settings = [f"--set={name}={value}" for name, value in SETTINGS.items()]
        budget = ["--sequences", str(STEPS * int(SETTINGS["batch_size"]))]
        data = [str(folder / "train.jsonl"), "--valid", str(folder / "valid.jsonl"), "--vocab-size", "300"]
        verb = [sys.executable, "-m", "rhapsode", "train"]
        self.environment = {**os.environ, "RHAPSODE_CACHE": str(out.with_suffix(".cache")), "OMP_NUM_THREADS": "1"}
        self.begun = time.monotonic()
        self.process = subprocess.Popen(
            [*verb, *data, "--out", str(out), *budget, "--threads", "1", *settings, *more],
            env=self.environment,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )

    def seconds(self) -> float:
        return time.monotonic() - self.begun

    def told(self) -> str:
        """What this process has written into the log."""
        return self.log.read_bytes()[self.log_size :].decode(errors="replace") if self.log.exists() else ""

    def wait_for_work(self, most: float = math.inf) -> None:
        """Returns when training begins, the process ends, or so many seconds after its start."""
        while self.seconds() < most and self.process.poll() is None and not self.told():
            time.sleep(0.002)

    def wait_for_steps(self, count: int) -> None:
        """Returns when there is a checkpoint so many steps further on than the last, or the process ends."""
        until = last_step(self.out) + count
        while self.process.poll() is None and last_step(self.out) < until:
            time.sleep(0.001)

    def finish(self) -> None:
        _, errors = self.process.communicate()
        if self.process.returncode:
            raise RuntimeError(f"rhapsode train ended with {self.process.returncode}: {errors}")

    def kill(self) -> Kill:
        seconds = self.seconds()
        self.process.kill()
        self.process.communicate()
        told, last = self.told(), last_progress(self.out)
        from_step = re.search(r"resumed at step ([\d,]+)", told)
        gone_on_from = int(from_step[1].replace(",", "")) if from_step else 0 if told else None
        return Kill(seconds, gone_on_from, self._doing(told, last), last["step"] if last else None)

    def _doing(self, told: str, last: dict[str, Any] | None) -> str:
        if not (self.out / "run.json").exists():
            return "starting, no run directory yet"
        if not told:
            return "starting"
        unfinished = [path.name.split(".")[1] for path in self.out.glob(".*.safetensors.*")]
        if unfinished:
            return f"writing {unfinished[0]}.safetensors"
        if (
            last
            and last["validated_step"] < last["step"]
            and last["step"] * VALIDATIONS >= STEPS * (last["validations"] + 1)
        ):
            return "validating"
        return "training"


def last_step(out: Path) -> int:
    """The step of the last checkpoint, 0 if there is none."""
    file = out / "last.safetensors"
    return json.loads(metadata_in(file.read_bytes())["progress"])["step"] if file.exists() else 0


def last_progress(out: Path) -> dict[str, Any] | None:
    found = Run.open(out).load("last") if (out / "run.json").exists() else None
    return found.progress if found else None


def write_data(folder: Path) -> None:
    texts = [text[:200] for text in storyworld.sample_batch(0, 400)]
    for name, part in (("train", texts[:300]), ("valid", texts[300:])):
        lines = "".join(json.dumps({"text": text}) + "\n" for text in part)
        (folder / f"{name}.jsonl").write_text(lines, encoding="utf-8")


def uninterrupted(folder: Path) -> tuple[Path, float]:
    """(run directory, seconds to start) of a run that nothing stops."""
    life = Life(folder, folder / "straight")
    life.wait_for_work()
    start = life.seconds()
    life.finish()
    return life.out, start


def killed(folder: Path, start: float, count: int = KILLS) -> tuple[Path, list[Kill]]:
    """A run that is killed so many times and resumed until it is done."""
    draw = random.Random(SEED)
    out, kills = folder / "killed", []
    for number in range(count):
        life = Life(folder, out, *(["--resume"] if number else []))
        if number in AT_START:
            life.wait_for_work(draw.uniform(0.05, 0.4 * start))  # `start` was the first one, which takes longest
        else:
            life.wait_for_work()
            life.wait_for_steps(draw.randint(0, 8))
            time.sleep(draw.uniform(0, 0.04))
        if life.process.poll() is not None:
            life.finish()
            raise RuntimeError(f"the run was at its end after {number} kills")
        kills.append(life.kill())
    Life(folder, out, "--resume").finish()
    return out, kills


def digests(out: Path, all_best_kept: bool = True) -> dict[str, str]:
    """SHA-256 of all that a run came to, apart from times; and from the best weights, where some could not be kept."""
    run = Run.open(out)
    found: dict[str, Any] = {}
    for name in ("last", "best") if all_best_kept else ("last",):
        checkpoint = run.load(name)
        assert checkpoint is not None
        for key, tensor in sorted(checkpoint.tensors.items()):
            part = f"{name}.safetensors, {key.split('/')[0]}"
            digest = found.setdefault(part, hashlib.sha256())
            digest.update(f"{key} {tensor.dtype} {tuple(tensor.shape)}".encode() + tensor.numpy().tobytes())
    left_out = {"seconds"} if all_best_kept else {"seconds", "best"}
    entries = [{key: value for key, value in entry.items() if key not in left_out} for entry in run.metrics()]
    found["metrics.jsonl without seconds"] = hashlib.sha256(json.dumps(entries).encode())
    return {part: digest.hexdigest() for part, digest in found.items()}


def report(kills: list[Kill], straight: dict[str, str], other: dict[str, str]) -> str:
    lines = [
        "# Killed and resumed",
        "",
        f"Written by `python tests/faults/kill_and_resume.py`: a run of {STEPS} steps with Muon, AdamW, dropout,",
        "weight decay and carried state, that writes a checkpoint after each step, was killed (SIGKILL)",
        f"{len(kills)} times at moments drawn from seed {SEED}, and resumed by the same command and `--resume`.",
        "Beside it, the same run was never stopped.",
        f"Python {platform.python_version()}, PyTorch {torch.__version__.split('+')[0]}, 1 thread.",
        "",
        "| kill | seconds after the start | had resumed at step | was doing | checkpoint that remained |",
        "|---:|---:|---:|---|---:|",
    ]
    for number, kill in enumerate(kills, 1):
        gone_on_from = "-" if kill.gone_on_from is None else f"{kill.gone_on_from}"
        left = "none" if kill.left is None else f"step {kill.left}"
        lines.append(f"| {number} | {kill.seconds:.2f} | {gone_on_from} | {kill.doing} | {left} |")
    same = sum(straight[part] == other.get(part) for part in straight)
    lines += ["", "| part of the end | never stopped | killed and resumed | |", "|---|---|---|---|"]
    for part, digest in straight.items():
        verdict = "equal" if other.get(part) == digest else "**differs**"
        lines.append(f"| {part} | `{digest[:16]}` | `{other.get(part, '')[:16]}` | {verdict} |")
    verdict = "bit-identical" if same == len(straight) == len(other) else "NOT identical"
    lines += ["", f"Verdict: {verdict} ({same} of {len(straight)} parts by SHA-256 over all their bytes)."]
    return "\n".join(lines) + "\n"


def main() -> int:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_data(folder)
        straight, start = uninterrupted(folder)
        out, kills = killed(folder, start)
        expected, found = digests(straight), digests(out)
    print(report(kills, expected, found), end="")
    return expected != found


if __name__ == "__main__":
    sys.exit(main())
