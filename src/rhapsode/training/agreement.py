"""What the processes of a training decide alike: when to stop, when to save, how long it has trained.

Nothing that is decided from one step to the next may hang on what one process alone knows, its clock, a signal that it
got: it is summed over all of them with the loss. A process alone asks itself.
"""

import threading
import time

import torch

from rhapsode.model import LanguageModel
from rhapsode.training.group import Group


class Agreement:
    """Of a group. asked: set where the user asked this process to stop; every: seconds between saves; seconds: of
    training so far."""

    def __init__(self, group: Group, asked: threading.Event, every: float, seconds: float) -> None:
        self.group, self.asked, self.every = group, asked, every
        self.saved_at = time.monotonic()
        self._own = self._agreed = seconds
        self._stop = self._save = False

    @property
    def seconds(self) -> float:
        """Of training, by process 0's clock."""
        return self._own if self.group.alone else self._agreed

    def worked(self, seconds: float) -> None:
        """This process has trained so much longer."""
        self._own += seconds

    def on(self, nats: float, started: float) -> float:
        """The loss of the whole batch, of which `nats` is this process's share, in a step that began at this time."""
        if self.group.alone:
            return nats
        now, leads = time.monotonic(), self.group.leads
        save = now - self.saved_at > self.every
        mine = [nats, self.asked.is_set(), leads and self._own + now - started, leads and save]
        nats, asked, self._agreed, save_due = self.group.sum(mine)
        self._stop, self._save = asked > 0, save_due > 0
        return nats

    def stop(self) -> bool:
        """Whether the user asked any of the processes to stop."""
        return self.asked.is_set() if self.group.alone else self._stop

    def save(self) -> bool:
        """Whether it is time to save."""
        return time.monotonic() - self.saved_at > self.every if self.group.alone else self._save

    def saved(self) -> None:
        """Something was saved now, or could not be."""
        self.saved_at = time.monotonic()

    def check_equal_weights(self, model: LanguageModel, step: int) -> None:
        """Raises ValueError where processes have different weights, which only a fault of a machine can bring about."""
        if self.group.alone:
            return
        bits = [int(p.detach().view(torch.int32).sum(dtype=torch.int64)) for p in model.parameters()]
        size = self.group.size
        parts = [float(part) for total in bits for part in (total >> 26, total & (2**26 - 1))]  # exact in float64
        if self.group.any([total / size for total in self.group.sum(parts)] != parts):
            raise ValueError(
                f"the processes no longer have the same weights at step {step}; this was not saved:"
                " resume the run, and check the machines' memory"
            )
