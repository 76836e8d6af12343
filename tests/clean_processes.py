"""Processes that begin without what a test's own process has imported, patched and started."""

import multiprocessing
from multiprocessing import forkserver
from typing import Any


def stop_server() -> None:
    """Ends the server of processes that somebody began: it has imported other things."""
    if hasattr(forkserver, "_forkserver"):
        forkserver._forkserver._stop()


def context_with(*imported: str) -> Any:
    """How processes are begun: forked from a server that has imported these modules and has no threads, or anew."""
    if "forkserver" not in multiprocessing.get_all_start_methods():
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([*imported])
    return context
