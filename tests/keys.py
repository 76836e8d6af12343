"""Keys that a person presses at a program's prompt."""

import time

import psutil

LONGEST_SECONDS = 120.0  # of a wait: to end a hang, not to measure a machine


def wait_for_prompt(process: int) -> None:
    """Returns when a program that has drawn its prompt waits for a key.

    Between the two, Python's input() notes a Ctrl-C, and heeds it only when another key comes: a person cannot be that
    fast, a test can.
    """
    end = time.monotonic() + LONGEST_SECONDS
    while psutil.Process(process).status() != psutil.STATUS_SLEEPING:
        assert time.monotonic() < end, "the program does not wait for anything"
        time.sleep(0.005)
