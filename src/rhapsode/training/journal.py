"""What a run says and writes down while it trains, also on a disk that refuses: log, metrics, TensorBoard, run.json.

Where the disk refuses, training continues; that is said once, until something can be saved again.
"""

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from rhapsode.files import AppendedFile
from rhapsode.progress import TrainingDisplay
from rhapsode.run import Run
from rhapsode.terminal import told
from rhapsode.training.progress import Progress


class Journal:
    """Of a run at work. writer: TensorBoard's, or None; show: live progress on stderr."""

    def __init__(self, run: Run, writer: Any, show: bool) -> None:
        self.run, self.writer = run, writer
        past = [entry["train_loss"] for entry in run.metrics() if entry["event"] == "train"]
        self.display = TrainingDisplay(past, enabled=show)
        self.log, self.metrics = AppendedFile(run.log_path), AppendedFile(run.metrics_path)
        self.refusals: set[str] = set()  # what was said of a disk that refuses

    @contextmanager
    def open(self) -> Iterator[None]:
        """Within the block, things are told and written; at its end the files are whole."""
        try:
            with self.display:
                yield
        finally:
            try:
                try:
                    self.log.close()
                except OSError as error:
                    self.display.say(f"{told(error)}; its last lines are lost")
            finally:
                self.metrics.close()

    def tell(self, line: str, sample: bool = False) -> None:
        """A line of the log, also shown; sample: as what the model wrote."""
        try:
            self.log.write(line + "\n")
        except OSError as error:
            if self.log.path.name not in self.refusals:
                self.refusals.add(self.log.path.name)
                self.display.say(f"{told(error)}; training continues, these lines are written later")
        if sample:
            self.display.sample(line)
        else:
            self.display.say(line)

    def write(self, event: str, progress: Progress, batch_size: int, **values: Any) -> None:
        """A line of metrics.jsonl, and of TensorBoard's file."""
        sequences = progress.step * batch_size
        counts = {"step": progress.step, "sequences": sequences, "tokens": progress.tokens}
        entry = {"event": event, **counts, "seconds": round(progress.seconds, 3), **values}
        try:
            self.metrics.write(json.dumps(entry) + "\n")
        except OSError as error:
            self.refused(error, "training continues, these lines are written later")
        try:
            for name, value in values.items():
                if self.writer is not None and isinstance(value, float):
                    self.writer.add_scalar(f"{event}/{name}", value, progress.step)
        except OSError as error:
            self.writer = None
            self.refused(error, "training continues without TensorBoard files")

    def noted(self, field: str, value: Any) -> bool:
        """Writes a field of run.json; False where the disk refuses."""
        try:
            again_if_refused(lambda: self.run.update(**{field: value}))
        except OSError as error:
            self.refused(error, f"training continues, the {field} is not written down")
            return False
        return True

    def refused(self, error: OSError, consequence: str) -> None:
        """Says that the disk refuses something and what comes of it; once until something can be saved again."""
        if consequence not in self.refusals:
            self.refusals.add(consequence)
            self.tell(f"{told(error)}; {consequence}")

    def saved(self) -> None:
        """Something could be saved: what the disk refuses from now on is told anew."""
        self.refusals = set()


def again_if_refused(write: Callable[[], None]) -> None:
    """Writes, and once more where the disk refuses: many a trouble is over by then."""
    try:
        write()
    except OSError:
        write()


@contextmanager
def board(run: Run, wanted: bool) -> Iterator[Any]:
    """TensorBoard's writer, or None; what a killed process wrote after the checkpoint is hidden there."""
    if not wanted:
        yield None
        return
    from torch.utils.tensorboard import SummaryWriter

    checkpoint = run.load("last")
    step = checkpoint.progress.get("step", -1) + 1 if checkpoint else 0
    with SummaryWriter(str(run.path / "tensorboard"), purge_step=step) as writer:
        yield writer
