"""What a question takes for an answer: how it is read, how it is judged, and how the right one is written."""

import re
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from rhapsode.textbook.explain.page import matrix, number, row
from rhapsode.textbook.explain.quiz.reading import Grid, arithmetic, grids, is_open

ANSWER_TOLERANCE = 0.0051  # two decimals, rounded either way, are right
SMALLEST = 0.02  # of an entry that is not 0 and not a whole number: rounded to two decimals it still shows


@dataclass(frozen=True)
class Mistake:
    """A wrong answer that is easily come by, and what leads to it, as the end of `that is …`."""

    answer: np.ndarray
    reason: str


@dataclass(frozen=True)
class NumbersAnswer:
    """A number, a vector or a matrix: `right` has 0, 1 or 2 axes.

    whole: only whole numbers, which must be exact; otherwise two decimals suffice. size_asked: the size is a part of
    the question, so that a matrix of another size is wrong, where it would otherwise be a slip to be asked again.
    """

    name: str
    right: np.ndarray
    whole: bool = False
    size_asked: bool = False
    mistakes: Sequence[Mistake] = field(default=())

    @property
    def form(self) -> str:
        """What is to be typed, as the end of `type …`."""
        hint = "" if self.whole else "; two decimals suffice, and fractions such as 3/4 are fine"
        if self.right.ndim == 0:
            return f"a {'whole ' * self.whole}number{hint}"
        if self.right.ndim == 1:
            return f"{len(self.right)} {'whole ' * self.whole}numbers in a row{hint}"
        size = "a matrix" if self.size_asked else f"a {_by(self.right.shape)} matrix"
        return f"{size}, row by row or at once such as [[1, 0], [-2, 4]]{hint}"

    def read(self, text: str) -> np.ndarray:
        """Numbers shaped like `right` (a matrix as it was typed if its size is asked). Raises ValueError."""
        if self.right.ndim == 0:
            if self.whole and re.fullmatch(r"\s*-?\d{1,3}(,\d{3})+\s*", text):
                return np.array(arithmetic(text.replace(",", "")))
            try:
                return np.array(arithmetic(text.strip().strip("[]")))
            except ValueError as error:
                if re.fullmatch(r"\s*-?\d+,\d+\s*", text):
                    raise ValueError(f"decimals are written with a point, got {text.strip()!r}") from None
                raise ValueError(f"{error}; type {self.form}") from None
        read: list[Grid] = []
        try:
            read.extend(grids(text))
        except ValueError as error:
            raise ValueError(f"{error}; type {self.form}") from None
        for grid in read:
            if self._fits(grid):
                return np.array(grid).reshape(self.right.shape)
        for grid in read:
            if self.size_asked and len({len(r) for r in grid}) == 1:
                return np.array(grid)
        raise ValueError(f"{_sizes(read[0])} cannot be the answer; type {self.form}")

    def judge(self, answer: np.ndarray) -> str | None:
        """None if it is right, else a sentence on what is wrong."""
        right = self.right
        if self._near(answer, right):
            return None
        for mistake in self.mistakes:
            if self._near(answer, mistake.answer):
                return f"that is {mistake.reason}"
        if answer.ndim == 2 and self._near(answer.T, right):
            return "that is its transpose"
        if answer.shape != right.shape:
            return f"the matrix is {_by(right.shape)}, yours is {_by(answer.shape)}"
        if self._near(-answer, right):
            return "the sign is wrong"
        if right.ndim == 0:
            off = abs(float(answer - right))
            close = not self.whole and off < 0.05
            return f"close, but off by {number(off)}: keep more decimals" if close else f"not {number(float(answer))}"
        wrong = np.argwhere(~self._close(answer, right))
        where = " ".join(
            f"{name} {i + 1}"
            for name, i in zip(("row", "column") if right.ndim == 2 else ("entry",), wrong[0], strict=True)
        )
        first = f"{where}, where you have {number(float(answer[tuple(wrong[0])]))}"
        if len(wrong) == 1:
            return f"all right but one: {first}"
        return f"{len(wrong)} of {right.size} entries are not right, the first is {first}"

    def check(self, text: str) -> str | None:
        """`judge` of what `read` makes of the text. Raises ValueError if it cannot be read."""
        return self.judge(self.read(text))

    def lines(self) -> list[str]:
        """The right answer, written out."""
        if self.right.ndim == 2:
            return matrix(self.name, self.right)
        return [f"{self.name} = {row(self.right) if self.right.ndim else number(float(self.right))}"]

    def complete(self, text: str) -> bool:
        """Whether nothing is missing at a terminal, where a matrix is typed row by row.

        Where the size is asked, its number of rows is not given away: an empty line ends it. Raises ValueError.
        """
        if self.right.ndim < 2:
            return not is_open(text)
        if "[[" in text.replace(" ", "") or ";" in text:
            return not is_open(text)
        if is_open(text):
            return False
        read = list(grids(text))
        return not self.size_asked and any(map(self._fits, read))

    def fair(self) -> bool:
        """Whether two decimals tell the right answer from the mistakes and from nothing at all."""
        sizes = np.abs(self.right).reshape(-1)
        sizes = sizes[sizes > 1e-12]
        large_enough = self.whole or bool((sizes >= SMALLEST).all())
        return len(sizes) > 0 and large_enough and len(self.mistakes) > 0

    def _fits(self, grid: Grid) -> bool:
        sizes = [len(r) for r in grid]
        if self.right.ndim == 1:  # as a row or as a column
            return sizes in ([len(self.right)], [1] * len(self.right))
        rows, columns = self.right.shape
        return sizes == [columns] * rows or (sizes == [rows * columns] and not self.size_asked)

    def _close(self, answer: np.ndarray, right: np.ndarray) -> np.ndarray:
        return np.abs(answer - right) <= (1e-6 if self.whole else ANSWER_TOLERANCE)

    def _near(self, answer: np.ndarray, right: np.ndarray) -> bool:
        return answer.shape == right.shape and bool(self._close(answer, right).all())


@dataclass(frozen=True)
class ShapeAnswer:
    """The sizes of an array's axes; how many axes there are is a part of the question."""

    name: str
    right: tuple[int, ...]
    mistakes: Sequence[tuple[tuple[int, ...], str]] = field(default=())

    @property
    def form(self) -> str:
        return "a size such as 2 x 3, with as many factors as it has axes"

    def read(self, text: str) -> tuple[int, ...]:
        """Whole numbers, separated by x, spaces or commas. Raises ValueError."""
        try:
            [*_, axes] = grids(re.sub("[x×X*·]", ",", text).replace("by", ","))
            sizes = [size for row in axes for size in row]
        except ValueError as error:
            raise ValueError(f"{error}; type {self.form}") from None
        if any(size != int(size) or size < 0 for size in sizes):
            raise ValueError(f"{text.strip()!r} must have whole numbers only; type {self.form}")
        return tuple(map(int, sizes))

    def judge(self, answer: tuple[int, ...]) -> str | None:
        """None if it is right, else a sentence on what is wrong."""
        if answer == self.right:
            return None
        for mistake, reason in self.mistakes:
            if answer == mistake:
                return f"that is {reason}"
        if len(answer) != len(self.right):
            return f"it has {_count(len(self.right), 'axis', 'axes')}, yours has {len(answer)}"
        if sorted(answer) == sorted(self.right):
            return "the right sizes, but in another order"
        wrong = [i for i, (mine, right) in enumerate(zip(answer, self.right, strict=True), start=1) if mine != right]
        return f"axis {', '.join(map(str, wrong))} is not right"

    def check(self, text: str) -> str | None:
        """`judge` of what `read` makes of the text. Raises ValueError if it cannot be read."""
        return self.judge(self.read(text))

    def lines(self) -> list[str]:
        """The right answer, written out."""
        return [f"{self.name} is {_by(self.right, ' x ')}"]

    def complete(self, text: str) -> bool:
        return True

    def fair(self) -> bool:
        return len(set(self.right)) == len(self.right)  # else two axes could be exchanged unseen


@dataclass(frozen=True)
class ChoiceAnswer:
    """One of several; reasons: for each option why it is wrong, or right."""

    options: tuple[str, ...]
    right: int
    reasons: tuple[str, ...]

    @property
    def form(self) -> str:
        return f"a letter, a to {_letter(len(self.options) - 1)}"

    def read(self, text: str) -> int:
        """The option's number from 0, from its letter or its words. Raises ValueError."""
        typed = " ".join(text.casefold().split())
        letters = [_letter(i) for i in range(len(self.options))]
        if (bare := typed.strip("().: ")) in letters:
            return letters.index(bare)
        spelled = [" ".join(option.casefold().split()) for option in self.options]
        if typed in spelled:
            return spelled.index(typed)
        raise ValueError(f"{text.strip()!r} is not one of the answers; type {self.form}")

    def judge(self, answer: int) -> str | None:
        """None if it is right, else a sentence on what is wrong."""
        return None if answer == self.right else self.reasons[answer]

    def check(self, text: str) -> str | None:
        """`judge` of what `read` makes of the text. Raises ValueError if it cannot be read."""
        return self.judge(self.read(text))

    def lines(self) -> list[str]:
        """The right answer, written out."""
        return [f"{_letter(self.right)}) {self.options[self.right]}"]

    def listed(self) -> list[str]:
        """The options, one on each line."""
        return [f"{_letter(i)}) {option}" for i, option in enumerate(self.options)]

    def complete(self, text: str) -> bool:
        return True

    def fair(self) -> bool:
        return len(set(self.options)) == len(self.options)


Answer = NumbersAnswer | ShapeAnswer | ChoiceAnswer


def told_apart(right: np.ndarray, *mistakes: tuple[np.ndarray | float | None, str]) -> tuple[Mistake, ...]:
    """The mistakes whose outcome two decimals tell from the right one; None is one that cannot be made here."""
    return tuple(
        Mistake(np.asarray(answer, dtype=np.float64), reason)
        for answer, reason in mistakes
        if answer is not None
        and (np.shape(answer) != right.shape or np.abs(np.asarray(answer) - right).max() > 2 * ANSWER_TOLERANCE)
    )


def _letter(i: int) -> str:
    return "abcdefgh"[i]


def _by(shape: tuple[int, ...], times: str = "x") -> str:
    return times.join(map(str, shape))


def _count(n: int, one: str, many: str) -> str:
    return f"{n} {one if n == 1 else many}"


def _sizes(grid: Grid) -> str:
    """`3 numbers`, or `rows of 2, 3 and 1 numbers`."""
    sizes = [len(r) for r in grid]
    if len(sizes) == 1:
        return _count(sizes[0], "number", "numbers")
    if len(set(sizes)) == 1:
        return f"{len(sizes)} rows of {_count(sizes[0], 'number', 'numbers')}"
    return f"rows of {', '.join(map(str, sizes[:-1]))} and {sizes[-1]} numbers"
