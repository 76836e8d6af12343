"""Power cuts on real file systems: ext4 and xfs on a loop device, cloned at random moments while a training runs.

The image of the file system lies on another one, xfs, that can clone a file at one moment in time (`cp --reflink`):
what the training's file system had given to its disk by then, and nothing else, as after a power cut. Each clone is
mounted, which replays its journal, and checked: the run opens, to a checkpoint that is not older than the last one
announced before the clone was begun, and that was announced as saved, by its step and its checksum: before, or, where
the clone fell between its rename and its announcement, by the training that goes on.

Needs root, loop devices and the programs mkfs.ext4 and mkfs.xfs; where they are missing or refused, it says so.
"""

import contextlib
import os
import random
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

from harness import NotHere, Tally, Unit

CLONES, SMALL_CLONES = 150, 4
SECONDS_TO_ANNOUNCE = 300.0  # what is on the disk already: to end a hang, not to measure a machine
BACKING, DISK = "3G", "340M"  # xfs takes no less
KINDS = {"ext4": (["mkfs.ext4", "-q", "-F"], []), "xfs": (["mkfs.xfs", "-q", "-f"], ["-o", "nouuid"])}
TRAINING = """
import sys
from pathlib import Path
sys.path[:0] = sys.argv[3:]
import material
from rhapsode.recipe import Recipe
from rhapsode.tensors import metadata_in
from rhapsode.training.start import create_run
made = material.material(Path(sys.argv[1]))
rates = {"learning_rate": 1e-6, "matrix_learning_rate": 1e-6}  # it must go on, whatever it learns
budget = {"sequences": 400_000, "validations": 2_000}
sections = {**material.SECTIONS, "optimizer": rates, "train": {**material.SECTIONS["train"], **budget}}
recipe = Recipe.from_sections(sections, made.tokenizer.vocab_size)
run = create_run(Path(sys.argv[2]) / "runs" / "run", recipe, made.tokenizer, {})
print("saved 0 nothing", flush=True)
def tell(event):
    if type(event).__name__ == "Saved":
        print("saved", event.step, metadata_in((run.path / "last.safetensors").read_bytes())["sha256"], flush=True)
material.trained(made, run, on_event=tell)
"""


def units(small: bool) -> list[Unit]:
    if os.geteuid() != 0:
        raise NotHere("mounting needs root")
    for program in ("losetup", "mount", "mkfs.ext4", "mkfs.xfs"):
        if shutil.which(program) is None:
            raise NotHere(f"{program} is not installed (Debian's packages mount, e2fsprogs and xfsprogs)")
    return [(kind, partial(cut_on, kind, SMALL_CLONES if small else CLONES)) for kind in KINDS]


def _call(*command: str | Path) -> None:
    result = subprocess.run([str(word) for word in command], capture_output=True, text=True)
    if result.returncode:
        raise NotHere(f"{command[0]}: {result.stderr.strip().splitlines()[-1] if result.stderr.strip() else 'failed'}")


@contextlib.contextmanager
def _mounted(image: Path, place: Path, *options: str) -> Iterator[Path]:
    place.mkdir(parents=True, exist_ok=True)
    _call("mount", "-o", "loop", *options, image, place)
    try:
        yield place
    finally:
        for _ in range(600):
            if subprocess.run(["umount", place], capture_output=True).returncode == 0:
                break
            time.sleep(0.1)  # somebody looks at it still


def _made(image: Path, size: str, kind: str) -> Path:
    with image.open("wb") as stream:
        stream.truncate(int(size[:-1]) * {"M": 1 << 20, "G": 1 << 30}[size[-1]])
    _call(*KINDS[kind][0], image)
    return image


class _Training:
    """A process that trains on the disk; announced: the last step that it said is saved; told: all, with checksums."""

    def __init__(self, folder: Path, disk: Path) -> None:
        paths = [str(Path(__file__).parent)]
        command = [sys.executable, "-c", TRAINING, str(folder), str(disk), *paths]
        self.process = subprocess.Popen(
            command, stdout=subprocess.PIPE, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"}
        )
        self.announced = -1
        self.told: dict[int, set[str]] = {}
        threading.Thread(target=self._listen, daemon=True).start()

    def _listen(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            _, step, checksum = line.split()
            self.told.setdefault(int(step), set()).add(checksum)
            self.announced = int(step)

    def has_told(self, step: int, checksum: str) -> bool:
        """Whether it said that this is saved at this step, waiting for it until it speaks of a later one: a step that
        ends with a validation is saved twice."""
        deadline = time.monotonic() + SECONDS_TO_ANNOUNCE
        while self.announced <= step and checksum not in self.told.get(step, ()):
            if self.process.poll() is not None or time.monotonic() > deadline:
                break
            time.sleep(0.005)
        return checksum in self.told.get(step, ())

    def stop(self) -> None:
        self.process.kill()
        self.process.wait()


def cut_on(kind: str, clones: int, seed: int, folder: Path) -> Tally:
    draw, tally = random.Random(f"{seed} {kind}"), Tally()
    with _mounted(_made(folder / "backing.img", BACKING, "xfs"), folder / "backing") as backing:
        image = _made(backing / "disk.img", DISK, kind)
        with _mounted(image, folder / "disk") as disk:
            training = _Training(folder / "made", disk)
            try:
                while training.announced < 0 and training.process.poll() is None:
                    time.sleep(0.005)
                for number in range(clones):
                    time.sleep(draw.uniform(0, 0.25))
                    if training.process.poll() is not None:
                        tally.note(f"the training that was to be cut ended at step {training.announced:,}")
                        break
                    announced, clone = training.announced, backing / "clone.img"
                    _call("cp", "--reflink=always", image, clone)
                    check = partial(_survives, clone, folder / "clone", KINDS[kind][1], announced, training)
                    tally.note_of(check, f"{kind}, clone {number + 1}, step {announced:,} announced")
                    clone.unlink()
                tally.facts["steps announced"] = training.announced
            finally:
                training.stop()
    return tally


def _survives(clone: Path, place: Path, options: list[str], announced: int, training: _Training) -> None:
    from rhapsode.run import Run
    from rhapsode.tensors import metadata_in

    with _mounted(clone, place, *options):
        run = Run.open(place / "runs" / "run")
        assert run.tokenizer.vocab_size == 280
        checkpoint = run.load("last")
        step = checkpoint.progress["step"] if checkpoint else 0
        assert step >= announced, f"step {announced:,} was announced, {step:,} is there"
        file = run.path / "last.safetensors"
        content = metadata_in(file.read_bytes())["sha256"] if checkpoint else "nothing"
        assert training.has_told(step, content), f"step {step:,} was never announced, or with other contents"
        run.load("best")
        assert run.changed_metrics() is None, run.changed_metrics()
        run.metrics()
