"""Two runs at a time, each in a process of its own that ends when the benchmark does."""

import multiprocessing
import os
import threading
from concurrent.futures import ProcessPoolExecutor


def two_at_once() -> ProcessPoolExecutor:
    """Fresh processes. Those of a benchmark that is killed would go on, and slow down whatever is measured next."""
    return ProcessPoolExecutor(2, multiprocessing.get_context("spawn"), initializer=_end_with_parent)


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None

    def watch() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
