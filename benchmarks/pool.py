"""Runs in processes of their own, so many at a time, that end when the benchmark does."""

import multiprocessing
import os
import threading
from concurrent.futures import ProcessPoolExecutor


def at_once(workers: int) -> ProcessPoolExecutor:
    """Fresh processes. Those of a benchmark that is killed would go on, and slow down whatever is measured next."""
    return ProcessPoolExecutor(workers, multiprocessing.get_context("spawn"), initializer=_end_with_parent)


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None

    def watch() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
