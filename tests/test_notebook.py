"""What a notebook shows while a model trains, made of the events alone."""

import re
from pathlib import Path

import pytest

from rhapsode.notebook import MOST_POINTS, LiveTraining, in_notebook
from rhapsode.training import Ended, Event, Started, Step, Validated


class Pictures(LiveTraining):
    """Keeps what would be shown."""

    def __init__(self) -> None:
        super().__init__()
        self.pages: list[str] = []

    def _show(self) -> None:
        self.pages.append(self.page())


def events(steps: int, total: int | None) -> list[Event]:
    """A training whose loss falls from 7 to 2, judged half-way and at its end."""
    found: list[Event] = [Started(Path("runs/<b>x"), 1234, "cpu", 1, 0, total)]
    for i in range(1, steps + 1):
        found.append(Step(i, total, 7 - 5 * i / steps, 10 * i, i / 100))
        if i in (steps // 2, steps):
            found.append(Validated(i, 3.0, 6.0 - 4 * i / steps, 1 - i / steps / 2, True, f"Once <i>{i}</i> & more"))
    return [*found, Ended("budget", steps, 10 * steps, steps / 100)]


def heard(given: list[Event]) -> Pictures:
    live = Pictures()
    live.begin()
    for event in given:
        live(event)
    return live


def points(page: str) -> list[tuple[float, float]]:
    [line] = re.findall(r'<polyline points="([^"]+)"', page)
    return [(float(x), float(y)) for x, y in (point.split(",") for point in line.split())]


def test_what_is_shown_at_the_beginning_and_the_end() -> None:
    """Would catch text or a path taken for HTML, a rate that stays for good, and a cell that is empty at first."""
    live = heard(events(40, 40))
    assert "reading the text" in live.pages[0]
    assert "1,234 parameters on cpu: runs/&lt;b&gt;x" in live.pages[1]
    last = live.pages[-1]
    assert (
        "40 steps, 400 tokens; validation loss 2.000 nats per token, 0.500 bits per byte; kept in runs/&lt;b&gt;x"
        in last
    )
    assert "tokens/s" not in last
    assert "Once &lt;i&gt;40&lt;/i&gt; &amp; more" in last
    assert '<progress value="1.0000"' in last
    assert not {"<b>", "<i>"} & set(re.findall(r"<\w+>", last))


def test_the_curve_lies_on_the_validations_and_does_not_grow() -> None:
    """Would catch a mean that lags behind in a short training, and a page of a megabyte after a long one."""
    for steps in (20, 30_000):
        curve = points(heard(events(steps, steps)).pages[-1])
        assert 10 <= len(curve) <= MOST_POINTS
        assert [x for x, _ in curve] == sorted(x for x, _ in curve)
        assert [y for _, y in curve] == sorted(y for _, y in curve)
    live = heard(events(20, 20))
    assert live.losses[-1][1] == pytest.approx(2.0, abs=0.5)


def test_before_the_number_of_steps_is_known() -> None:
    live = Pictures()
    for event in events(5, None)[:5]:
        live(event)
    assert live.line == "step 3: loss 5.000, 1,000 tokens/s"
    assert '<progress value="0.0000"' in live.page()


@pytest.mark.parametrize(
    ("reason", "words"),
    [("patience", ", stopped early: no gain any more"), ("interrupted", ", stopped and saved; kept in runs/x")],
)
def test_other_ends(reason: str, words: str) -> None:
    live = heard([Started(Path("runs/x"), 1, "cpu", 1, 0, 9), Step(1, 9, 3.0, 10, 0.1), Ended(reason, 1, 10, 0.1)])
    assert words in live.pages[-1]
    assert ('<progress value="1.0000"' in live.pages[-1]) == (reason == "patience")


def test_a_finished_run_that_is_resumed() -> None:
    """No step, no validation: nothing to draw, and no error."""
    live = heard([Started(Path("runs/x"), 1, "cpu", 1, 9, 9), Ended("budget", 9, 90, 1.0)])
    assert "9 steps, 90 tokens; kept in runs/x" in live.pages[-1]
    assert "<svg" not in live.pages[-1]


def test_in_a_notebook_and_out_of_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """Would catch a curve on a terminal under IPython, and none on Colab, whose shell has another name."""
    assert not in_notebook()
    zmqshell = pytest.importorskip("ipykernel.zmqshell")
    from IPython.terminal.interactiveshell import TerminalInteractiveShell

    class Shell(zmqshell.ZMQInteractiveShell):
        pass

    for kind, expected in ((zmqshell.ZMQInteractiveShell, True), (Shell, True), (TerminalInteractiveShell, False)):
        monkeypatch.setattr("IPython.get_ipython", lambda kind=kind: kind.__new__(kind))
        assert in_notebook() is expected
