"""Where the cells of a study are trained: processes of this machine, commands of a cluster, or tasks of Ray.

    local              a process of this machine for each cell
    command srun -n1   that command, with the cell's own behind it: what gets a process onto a machine of a cluster
    ray                a Ray task for each cell, which Ray gives to a machine with so many free CPUs, and gives again to
                       another one where the first is lost

All of them run `python -m rhapsode.studies.cell`, which resumes the cell where it was left. Its files lie in the
study's directory, which all machines see at the same path, or are kept in a storage that they all reach (storage.py).
"""

import os
import shlex
import signal
import subprocess
import sys
from collections.abc import Sequence
from typing import IO, Any, Protocol

from rhapsode.progress import say
from rhapsode.studies.directory import Study
from rhapsode.studies.plans import Cell

RETRIES = 3  # of a cell whose machine is lost
STUDY_PROCESS = "RHAPSODE_STUDY_PROCESS"  # the variable by which a cell's process knows the study that began it
CANCEL_SECONDS = 30.0  # for a cell to save when its task is cancelled
ENGINES = "local, ray, or command and what is to stand before the cell's own command, such as 'command srun -n1'"


class CellAtWork(Protocol):
    """A cell at work, as `subprocess.Popen` has it; returncode: below 0 where it was killed."""

    returncode: int

    def poll(self) -> int | None:
        """Its exit code, None while it works."""

    def terminate(self) -> None:
        """Asks it to save and to end."""

    def kill(self) -> None:
        """Ends it."""

    def wait(self) -> int:
        """Returns when it has ended."""


class CellEngine(Protocol):
    """What starts cells. shares_machine: whether cells that run at once share the threads of this machine."""

    shares_machine: bool

    def start(self, study: Study, cells: Sequence[Cell], threads: int, log: IO[bytes]) -> CellAtWork:
        """Starts a cell, or several side by side, with so many threads; what it says goes into the log."""

    def close(self) -> None:
        """Gives back what the engine took."""


def engine_named(name: str, address: str | None = None, storage: str | None = None) -> CellEngine:
    """The engine of this name. address: of a Ray cluster; storage: where cells keep their files.

    Raises ValueError with one line where there is no such engine, or it is not installed or cannot be reached.
    """
    kind, _, words = name.strip().partition(" ")
    if address is not None and kind != "ray":
        raise ValueError(f"--address is that of a Ray cluster: use it with --engine ray, not {name!r}")
    if kind == "local" and not words:
        if storage is not None:
            raise ValueError("--storage is for cells on other machines; with --engine local they are in --out")
        return CommandEngine((), None, shares_machine=True)
    if kind == "command" and words.strip():
        return CommandEngine(tuple(shlex.split(words)), storage, shares_machine=False)
    if kind == "ray" and not words:
        return RayEngine(address, storage)
    raise ValueError(f"--engine must be {ENGINES}; got {name!r}")


def command_of_cells(study: Study, cells: Sequence[Cell], threads: int, storage: str | None) -> list[str]:
    """The command that trains a cell, or several side by side."""
    names = ",".join(cell.name for cell in cells)  # no name has a comma
    words = [sys.executable, "-m", "rhapsode.studies.cell", os.path.abspath(study.path), names, str(threads)]
    return words + ([] if storage is None else [storage])


class CommandEngine:
    """A process for each cell or group of cells, with some words before its command or none."""

    def __init__(self, before: Sequence[str], storage: str | None, shares_machine: bool) -> None:
        self.before, self.storage, self.shares_machine = before, storage, shares_machine

    def start(self, study: Study, cells: Sequence[Cell], threads: int, log: IO[bytes]) -> CellAtWork:
        """Raises FileNotFoundError where there is no such command."""
        parent = {} if self.before else {STUDY_PROCESS: str(os.getpid())}
        return subprocess.Popen(
            [*self.before, *command_of_cells(study, cells, threads, self.storage)],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,  # the terminal's Ctrl-C reaches this process alone, which passes it on
            env={**os.environ, "OMP_NUM_THREADS": str(threads), **parent},
        )

    def close(self) -> None:
        """Nothing was taken."""


class RayEngine:
    """A task of a Ray cluster for each cell; without an address, of a cluster that is started on this machine."""

    shares_machine = False

    def __init__(self, address: str | None, storage: str | None) -> None:
        try:
            import ray
        except ImportError:
            raise ValueError("--engine ray needs the package ray; pip install 'rhapsode[cluster]'") from None
        self.ray, self.storage = ray, storage
        self.started = not ray.is_initialized()
        if self.started:
            path = {"PYTHONPATH": os.environ["PYTHONPATH"]} if os.environ.get("PYTHONPATH") else {}
            options: dict[str, Any] = {"include_dashboard": False} if address is None else {"address": address}
            try:
                ray.init(**options, log_to_driver=False, logging_level="error", runtime_env={"env_vars": path})
            except (ConnectionError, RuntimeError, ValueError) as error:
                reason = str(error).strip().splitlines()[0]
                raise ValueError(f"no Ray cluster at {address or 'this machine'}: {reason}") from None
        cpus = ray.cluster_resources().get("CPU", 0)
        say(f"Ray: {len(ray.nodes())} machines, {cpus:g} CPUs")

    def start(self, study: Study, cells: Sequence[Cell], threads: int, log: IO[bytes]) -> CellAtWork:
        """Hands the cell to Ray, which starts it when a machine has so many CPUs free."""
        task = self.ray.remote(num_cpus=threads, max_retries=RETRIES, retry_exceptions=False)(run_command)
        command = command_of_cells(study, cells, threads, self.storage)
        return RayCell(self.ray, task.options(name=cells[0].name).remote(command, threads), log)

    def close(self) -> None:
        """Leaves the cluster, or ends it where it was started here."""
        if self.started:
            self.ray.shutdown()


class RayCell:
    """A cell that was handed to Ray."""

    def __init__(self, ray: Any, task: Any, log: IO[bytes]) -> None:
        self.ray, self.task, self.log = ray, task, log
        self.returncode: int = 0
        self.ended = False

    def poll(self) -> int | None:
        """As `Popen.poll`; a cell whose machines were lost again and again counts as killed."""
        if self.ended:
            return self.returncode
        if not self.ray.wait([self.task], timeout=0)[0]:
            return None
        try:
            self.returncode, said = self.ray.get(self.task)
        except self.ray.exceptions.TaskCancelledError:
            self.returncode, said = -signal.SIGTERM, b""
        except self.ray.exceptions.RayError as error:
            self.returncode, said = -signal.SIGKILL, (str(error).splitlines() or [""])[0].encode()
        self.log.write(said)
        self.ended = True
        return self.returncode

    def terminate(self) -> None:
        """Interrupts the task, which passes that on to the cell."""
        self.ray.cancel(self.task, force=False)

    def kill(self) -> None:
        """Ends the task and its process."""
        self.ray.cancel(self.task, force=True)

    def wait(self) -> int:
        """Returns when the task has ended, or could not be interrupted in time."""
        self.ray.wait([self.task], timeout=CANCEL_SECONDS)
        code = self.poll()
        return -signal.SIGKILL if code is None else code


def run_command(command: list[str], threads: int) -> tuple[int, bytes]:
    """A Ray task: (exit code, what was said) of a command, in a process of its own.

    The process leaves when it finds that the one which started it, Ray's, is gone: so a task that is given again finds
    the cell saved and free.
    """
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads), "PYTHONUNBUFFERED": "1"}
    process = subprocess.Popen(
        [sys.executable, *command[1:]],  # the interpreter of this machine
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        env=environment,
    )
    try:
        said, _ = process.communicate()
    except BaseException:  # Ray interrupts a task that is cancelled
        process.terminate()
        said, _ = process.communicate()
    return process.returncode, said
