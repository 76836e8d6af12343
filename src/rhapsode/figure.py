"""How lines of a figure are told apart: by colours that colour-blind people can tell (Okabe and Ito 2008), and by marks
and dashes where it is printed in grey. The i-th line takes the i-th of each.
"""

from typing import Any

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#000000", "#CC79A7", "#E69F00", "#56B4E9", "#7F7F7F")
DASHES: tuple[Any, ...] = ("-", "--", "-.", ":", (0, (5, 1)), (0, (3, 1, 1, 1, 1, 1)), (0, (1, 2)), (0, (8, 3)))
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")
LITERAL_TEXT = {"text.parse_math": False}  # matplotlib's settings under which `$` in a name or a text is a `$`
