"""One model trained by several processes, of which one is killed, and hosts that are cut off from each other.

torchrun's elastic agent starts all processes again when one is killed, and training continues from the last save: its
end is, bit by bit, that of as many processes that nothing disturbs. Here the agent runs as torchrun runs it, but forks
its workers off a process that has imported PyTorch already, which saves each of them seconds.
"""

import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from harness import Tally, Unit
from kill_and_resume import SETTINGS, digests, last_step, write_data

PROCESSES = 2
KILLS, SMALL_KILLS = 20, 2
STEPS_OF_A_KILL = 6  # that pass between two kills, on the average
LONGEST_START = 1.5  # seconds after a start, within which some kills come
STARTING = 0.2  # of the kills
LOST = "lost another of the"


def units(small: bool) -> list[Unit]:
    from hosts import units as of_hosts

    kills = SMALL_KILLS if small else KILLS
    return [(f"{kills} kills of one of {PROCESSES} processes", partial(kill_workers, kills)), *of_hosts(small)]


def kill_workers(kills: int, seed: int, folder: Path) -> Tally:
    """Kills one of the processes again and again, at moments drawn from the seed, and compares the ends."""
    write_data(folder)
    steps = kills * STEPS_OF_A_KILL + 24  # more than pass while a busy machine keeps this process waiting
    start(folder, "straight", steps, 0).wait()
    expected = digests(folder / "straight")
    draw, tally, doing = random.Random(seed), Tally(), {}
    out = folder / "killed"
    agent = start(folder, "killed", steps, kills)
    tried: dict[int, int] = {}
    for number in range(kills):
        rank = number % PROCESSES
        pid = new_worker(folder / "killed.pids", rank, tried.get(rank), agent)
        for other in range(PROCESSES):  # all are started anew after a kill
            tried[other] = new_worker(folder / "killed.pids", other, tried.get(other), agent)
        if draw.random() < STARTING:
            time.sleep(draw.uniform(0, LONGEST_START))
        else:
            until = (last_step(out) if out.exists() else 0) + draw.randint(0, 2 * STEPS_OF_A_KILL - 4)
            wait_until(lambda until=until: out.exists() and last_step(out) >= until, agent)
            time.sleep(draw.uniform(0, 0.04))
        what = f"process {rank}, {'before the first step' if last_step(out) == 0 else 'training'}"
        os.kill(pid, signal.SIGKILL)
        doing[what] = doing.get(what, 0) + 1
        tally.note(None)
    agent.wait()
    said = (folder / "killed.log").read_text(encoding="utf-8", errors="replace")
    lines = [line for line in said.splitlines() if line.startswith("rhapsode:")]
    tally.facts = {"killed": doing, "lines that told of it": len(lines)}
    whole = agent.returncode == 0 and digests(out) == expected
    tally.note(None if whole else f"ended elsewhere, exit code {agent.returncode}: {said[-1500:]}")
    told = len(lines) <= kills and all(LOST in line for line in lines)
    tally.note(None if told or not whole else f"more than one line of a kill: {lines}")
    return tally


def start(folder: Path, name: str, steps: int, restarts: int) -> "subprocess.Popen[bytes]":
    """The elastic agent in a process of its own, with workers that train in `name`."""
    settings = [f"--set={key}={value}" for key, value in SETTINGS.items()]
    budget = ["--sequences", str(steps * int(SETTINGS["batch_size"]))]
    data = [str(folder / "train.jsonl"), "--valid", str(folder / "valid.jsonl"), "--vocab-size", "300"]
    command = ["train", *data, "--out", str(folder / name), *budget, "--threads", "1", "--peer-timeout", "20"]
    environment = {**os.environ, "RHAPSODE_CACHE": str(folder / "cache"), "OMP_NUM_THREADS": "1"}
    (folder / f"{name}.pids").mkdir()
    asked = json.dumps([str(folder / f"{name}.pids"), restarts, [*command, *settings]])
    with (folder / f"{name}.log").open("wb") as log:
        return subprocess.Popen(
            [sys.executable, __file__, asked], env=environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log
        )


def new_worker(pids: Path, rank: int, before: int | None, agent: "subprocess.Popen[bytes]") -> int:
    """The id of a worker's process, once it is another one than before."""

    def found() -> int:
        file = pids / str(rank)
        return int(file.read_text() or 0) if file.exists() else 0

    wait_until(lambda: found() not in (0, before), agent)
    return found()


def wait_until(true: Callable[[], bool], agent: "subprocess.Popen[bytes]") -> None:
    """Returns when it is so; RuntimeError where the agent ends before."""
    while not true():
        if agent.poll() is not None:
            raise RuntimeError(f"the agent ended before with {agent.returncode}")
        time.sleep(0.002)


def work(pids: str, arguments: list[str]) -> None:
    """A worker: `rhapsode` with these arguments, after it has written down its number."""
    from rhapsode.cli import main

    torch.set_num_threads(1)
    file = Path(pids) / os.environ["RANK"]
    file.with_suffix(".new").write_text(str(os.getpid()))
    file.with_suffix(".new").replace(file)
    sys.argv = ["rhapsode", *arguments]
    try:
        main()
    except SystemExit as ended:  # the agent waits for what a function returns
        if ended.code:
            raise


def run_agent(pids: str, restarts: int, arguments: list[str]) -> None:
    """What `torchrun --nproc-per-node 2 --max-restarts N -m rhapsode ...` does."""
    import torch._dynamo  # the first optimiser of a process asks for it
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    import rhapsode.api

    assert rhapsode.api
    torch.set_num_threads(1)
    config = LaunchConfig(
        1,
        1,
        PROCESSES,
        run_id="rhapsode",
        rdzv_backend="c10d",
        rdzv_endpoint="127.0.0.1:0",
        local_addr="127.0.0.1",
        max_restarts=restarts,
        monitor_interval=0.05,
        start_method="fork",
    )
    try:
        elastic_launch(config, work)(pids, arguments)
    except ChildFailedError:
        sys.exit(1)


def leave_with_parent() -> None:
    """Ends this process when the one that started it is gone."""
    parent = os.getppid()

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(0.5)
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=watch, daemon=True).start()


if __name__ == "__main__":
    leave_with_parent()
    asked: Any = json.loads(sys.argv[1])
    run_agent(*asked)
