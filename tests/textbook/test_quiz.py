"""`rhapsode explain quiz`: what it holds right, what it takes for right, and how it asks."""

import math
import re
from fractions import Fraction
from functools import cache
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from quiz_oracle import expected, lines_of, shown

from rhapsode.textbook.explain.page import Lines
from rhapsode.textbook.explain.quiz import TOPICS
from rhapsode.textbook.explain.quiz.answers import ANSWER_TOLERANCE, ChoiceAnswer, NumbersAnswer, ShapeAnswer
from rhapsode.textbook.explain.quiz.draw import MAKERS, chosen_topics, draw_questions
from rhapsode.textbook.explain.quiz.question import Question
from rhapsode.textbook.explain.quiz.reading import arithmetic, grids

SEEDS = range(8)


@cache
def questions_of(topic: str) -> list[Question]:
    return [question for seed in SEEDS for question in draw_questions(seed, 2 * len(MAKERS[topic]), [topic])]


def test_every_topic_has_its_makers():
    assert tuple(MAKERS) == TOPICS


@pytest.mark.parametrize("topic", TOPICS)
def test_right_is_what_pytorch_computes_from_what_is_shown(topic):
    """Catches a text that says other numbers than the answer was computed with, and a wrong use of the textbook."""
    for question in questions_of(topic):
        answer, right = question.answer, expected(question)
        if isinstance(answer, ChoiceAnswer):
            assert answer.options[answer.right] == right
        elif isinstance(answer, ShapeAnswer):
            assert answer.right == right
        else:
            assert answer.right.shape == right.shape
            np.testing.assert_allclose(answer.right, right, atol=1e-9)


@pytest.mark.parametrize("topic", TOPICS)
def test_the_steps_end_in_the_answer(topic):
    """The last thing computed, read back from the page, is the right answer to the decimals that are printed."""
    for question in questions_of(topic):
        answer = question.answer
        last = [block for block in question.steps if isinstance(block, Lines)][-1:]
        if isinstance(answer, ChoiceAnswer):
            if last:
                assert last[0].lines[-1].endswith(answer.options[answer.right])
        elif isinstance(answer, ShapeAnswer):
            found = [int(n) for line in last[0].lines for n in re.findall(r"\d+", line.split(" = ")[-1])]
            assert found == list(answer.right[-len(found) :])
        elif answer.right.ndim == 0 or answer.right.ndim == 1:
            assert _calculated(last[0].lines[-1].split(" = ")[-1]) == pytest.approx(answer.right, abs=6e-5)
        elif topic == "convolution-gradient" and answer.name == "df":
            found = [_calculated(line.split(" = ")[-1]) for line in last[0].lines]
            assert found == pytest.approx(answer.right.reshape(-1))
        else:
            assert shown(last[0].lines)[answer.name].numpy() == pytest.approx(answer.right, abs=6e-5)


@pytest.mark.parametrize("topic", TOPICS)
def test_each_equation_of_the_steps_holds(topic):
    """`m = floor((9 + 2·1 - 2) / 2) + 1 = 5`, `(1, 2) + (0, 3) = (1, 5)`: both sides, evaluated, are the same."""
    checked = 0
    for question in questions_of(topic):
        text = re.sub(r"\n +(?=[+=] )", " ", "\n".join(lines_of(question.steps)))
        for line in text.split("\n"):
            for left, right in pairwise(line.split(" = ")):
                a, b = _calculated(left), _calculated(right)
                if a is not None and b is not None:
                    assert a == pytest.approx(b, abs=1e-3), line
                    checked += 1
    assert checked >= {"toeplitz": 10, "tape": 50}.get(topic, len(SEEDS))


@pytest.mark.parametrize("topic", TOPICS)
def test_right_answers_are_right_in_every_spelling(topic):
    for question in questions_of(topic):
        answer = question.answer
        for spelled in _spellings(answer):
            assert answer.check(spelled) is None, (spelled, answer)


@pytest.mark.parametrize("topic", TOPICS)
def test_near_misses_are_wrong_and_the_usual_mistakes_are_recognised(topic):
    """Each mistake with its own remark; one entry off by a little; the transpose; the other sign; the other letters."""
    for question in questions_of(topic):
        answer = question.answer
        if isinstance(answer, ChoiceAnswer):
            for i in range(len(answer.options)):
                assert (answer.check("abcd"[i]) is None) == (i == answer.right)
        elif isinstance(answer, ShapeAnswer):
            for mistake, _ in answer.mistakes:
                assert answer.check(" x ".join(map(str, mistake))).startswith("that is ")
            reordered = (*answer.right[1:], answer.right[0])
            assert answer.check(" ".join(map(str, reordered)))
            assert answer.check(" ".join(map(str, [*answer.right, 1])))
        else:
            for mistake in answer.mistakes:
                assert answer.judge(mistake.answer).startswith("that is ")
            off = 1 if answer.whole else 0.012
            for index in np.ndindex(answer.right.shape):
                near = answer.right.copy()
                near[index] += off
                assert answer.judge(near), (near, answer)
            if np.abs(answer.right).max() > ANSWER_TOLERANCE:
                assert answer.judge(-answer.right)
            if answer.right.ndim == 2 and not np.allclose(answer.right, answer.right.T if _square(answer) else 0):
                assert answer.judge(answer.right.T)


def test_remarks_say_what_is_wrong():
    matrix = NumbersAnswer("M", np.array([[1.0, 0.5], [0.25, -2.0]]))
    assert matrix.check("1 0.5; 0.25 -3") == "all right but one: row 2 column 2, where you have -3"
    assert matrix.check("1 0.25; 0.5 -2") == "that is its transpose"
    assert matrix.check("-1 -0.5; -0.25 2") == "the sign is wrong"
    assert matrix.check("7 7; 7 7") == "4 of 4 entries are not right, the first is row 1 column 1, where you have 7"
    assert NumbersAnswer("x", np.array(1 / 3)).check("0.3") == "close, but off by 0.0333: keep more decimals"
    assert NumbersAnswer("x", np.array(1 / 3)).check("0.33") is None
    assert NumbersAnswer("x", np.array(5.0), whole=True).check("5.004") == "not 5.004"
    toeplitz = NumbersAnswer("A", np.eye(2, 3), size_asked=True)
    assert toeplitz.check("1 0 0; 0 1 0; 0 0 1") == "the matrix is 2x3, yours is 3x3"
    assert ShapeAnswer("s", (2, 3, 4)).check("3 4") == "it has 3 axes, yours has 2"
    assert ShapeAnswer("s", (2, 3, 4)).check("2 x 4 x 3") == "the right sizes, but in another order"
    assert ShapeAnswer("s", (2, 3, 4)).check("2 x 5 x 4") == "axis 2 is not right"


@pytest.mark.parametrize(
    ("text", "value"),
    [
        *[("3/4", 0.75), ("-1/8", -0.125), ("−1/8", -0.125), (" 2 ", 2), ("1e-1", 0.1), (".5", 0.5), ("+1", 1)],
        *[("2^3", 8), ("2**-1", 0.5), ("-2^2", -4), ("(1 + 2) * 3", 9), ("3·4", 12), ("6÷4", 1.5), ("2×3", 6)],
        *[("sqrt(2)", math.sqrt(2)), ("√2", math.sqrt(2)), ("1/√(4)", 0.5), ("log 3", math.log(3)), ("exp(0)", 1)],
    ],
)
def test_plain_arithmetic(text, value):
    assert arithmetic(text) == pytest.approx(value, abs=1e-12)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        *[(text, "is not a number") for text in ("", "x", "1 2", "True", "'1'", "1j", "[1]", "1 if 1 else 2", "1//2")],
        *[(text, "is not a number") for text in ("__import__('os').system('ls')", "(-8)^(1/3)", "sqrt(-1)", "log(0)")],
        *[(text, "is not a number") for text in ("lambda: 1", "a.b", "(" * 150, "-" * 500, "1\x00", "x := 1", "nan")],
        *[(text, "is too large") for text in ("9**9**9", "1e999", "10.0**400", "exp(1000)")],
        ("1/0", "divides by zero"),
    ],
)
def test_what_is_no_arithmetic_is_one_line(text, message):
    """Nothing is executed, and a power tower does not hang."""
    with pytest.raises(ValueError, match=message) as error:
        arithmetic(text)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "text",
    [
        *["1 -2; 3/4 0", "1 -2 / 3/4 0", "1, -2; 3/4, 0", "1 -2\n3/4 0", "[[1, -2], [3/4, 0]]"],
        *["[[1, -2],\n [3/4, 0]]", "[1 -2; 3/4 0]", "[1, -2] [3/4, 0]", "((1, -2), (3/4, 0))", "1 −2 ; 0.75 0"],
        *["1 -2 3/4 0", "1, -2, 3/4, 0", "1, 1 - 3; (1 + 2)/4, 0", "[1, -2],\n[3 / 4, 0]", "1, -2 / 3/4, 0"],
    ],
)
def test_matrices_are_read_in_every_spelling(text):
    assert NumbersAnswer("M", np.array([[1, -2], [0.75, 0]])).check(text) is None


@pytest.mark.parametrize(
    "text", ["1 -2 3", "(1, -2, 3)", "[1, -2, 3]", "1; -2; 3", "1\n-2\n3", "1, 1 - 3, 6 / 2", "1,-2,3"]
)
def test_vectors_are_read_in_every_spelling(text):
    assert NumbersAnswer("v", np.array([1.0, -2, 3])).check(text) is None


@pytest.mark.parametrize(
    ("answer", "text", "message"),
    [
        (
            NumbersAnswer("v", np.ones(3), whole=True),
            "1 2",
            "2 numbers cannot be the answer; type 3 whole numbers in a row",
        ),
        (
            NumbersAnswer("v", np.ones(3)),
            "1 two 3",
            "'two' is not a number; type 3 numbers in a row; two decimals suffice",
        ),
        (
            NumbersAnswer("M", np.ones((2, 2))),
            "1 2; 3",
            "rows of 2 and 1 numbers cannot be the answer; type a 2x2 matrix",
        ),
        (
            NumbersAnswer("M", np.ones((2, 2)), size_asked=True),
            "1 2; 3",
            "rows of 2 and 1 numbers cannot be the answer",
        ),
        (NumbersAnswer("M", np.ones((2, 2))), "[[1, 2], [3, 4]", "the brackets do not match; type a 2x2 matrix"),
        (NumbersAnswer("x", np.array(0.5)), "0,5", "decimals are written with a point, got '0,5'"),
        (NumbersAnswer("x", np.array(7.0), whole=True), "seven", "'seven' is not a number; type a whole number"),
        (ShapeAnswer("s", (2, 3)), "two by three", "is not a number; type a size such as 2 x 3"),
        (ShapeAnswer("s", (2, 3)), "2.5 x 3", "must have whole numbers only; type a size"),
        (
            ChoiceAnswer(("yes", "no"), 0, ("", "")),
            "perhaps",
            "'perhaps' is not one of the answers; type a letter, a to b",
        ),
    ],
)
def test_what_cannot_be_read_says_what_is_expected(answer, text, message):
    with pytest.raises(ValueError, match=re.escape(message)) as error:
        answer.check(text)
    assert "\n" not in str(error.value)


@settings(max_examples=200)
@given(st.text(alphabet="0123456789.,;/+-*^()[]√ \nexlogsqrt'_:x×", max_size=40) | st.text(max_size=20))
def test_nothing_typed_ends_in_a_traceback(text):
    """Whatever is typed is right, wrong, or one line."""
    answers = [
        NumbersAnswer("M", np.ones((2, 2))),
        NumbersAnswer("A", np.ones((2, 3)), size_asked=True),
        NumbersAnswer("v", np.ones(3)),
    ]
    for answer in [
        *answers,
        NumbersAnswer("x", np.array(2.0), whole=True),
        ShapeAnswer("s", (2, 3)),
        ChoiceAnswer(("a", "b"), 0, ("", "")),
    ]:
        message = ""
        try:
            answer.complete(text)
            message = answer.check(text) or ""
        except ValueError as error:
            message = str(error)
        assert "\n" not in message


def test_thousands_may_be_set_apart_in_whole_numbers():
    assert NumbersAnswer("n", np.array(1341184.0), whole=True).check("1,341,184") is None
    assert list(grids("1,600")) == [[[1, 600]]]


def test_a_seed_gives_the_same_questions_and_a_larger_count_goes_on():
    ten, twenty = draw_questions(5, 10, TOPICS), draw_questions(5, 20, TOPICS)
    assert [q.blocks for q in ten] == [q.blocks for q in twenty[:10]]
    assert sorted(q.topic for q in ten) == sorted(TOPICS)
    assert all(a.blocks != b.blocks for a, b in zip(ten, draw_questions(6, 10, TOPICS), strict=True))
    assert len({str(q.blocks) for q in twenty}) == 20


def test_topics_are_chosen_by_name():
    assert chosen_topics([]) == list(TOPICS)
    assert chosen_topics(["tape", "toeplitz, parameters"]) == ["parameters", "toeplitz", "tape"]
    for wrong in ("tapes", "tape,", ""):
        with pytest.raises(ValueError, match="the topics are output-size, parameters, ") as error:
            chosen_topics([wrong])
        assert "\n" not in str(error.value)


def _calculated(text: str) -> np.ndarray | None:
    """What a piece of a step comes to, if it is numbers: `3·(-2) + 1`, `1/2·(3, 4)`, `(1, 0) ∘ (2, 5)`."""
    plain = re.sub(r"\(([^()]*,[^()]*)\)", r"V(\1)", text.strip()).replace("·", "*").replace("∘", "*")
    if not re.fullmatch(r"(?:[\d\s.,+\-*/()V]|e-\d|floor)+", plain) or not re.search(r"\d", plain):
        return None
    try:
        return np.asarray(eval(plain, {"V": lambda *v: np.array(v), "floor": math.floor}))
    except SyntaxError:
        return None


def _square(answer: NumbersAnswer) -> bool:
    return answer.right.shape[0] == answer.right.shape[1]


def _spellings(answer: NumbersAnswer | ShapeAnswer | ChoiceAnswer) -> list[str]:
    if isinstance(answer, ChoiceAnswer):
        letter = "abcd"[answer.right]
        return [letter, letter.upper(), f"({letter})", f" {letter}) ", answer.options[answer.right].upper()]
    if isinstance(answer, ShapeAnswer):
        sizes = [str(size) for size in answer.right]
        return ["x".join(sizes), " x ".join(sizes), " ".join(sizes), f"({', '.join(sizes)})", f"[{','.join(sizes)}]"]
    writers = [lambda v: f"{v:.12g}", lambda v: str(Fraction(float(v)).limit_denominator(10_000)).replace("-", "−")]
    writers += [lambda v: f"{v - 1:.9f}+1" if answer.right.ndim == 0 else f"({v - 1:.9f} + 1)"]
    if not answer.whole:
        writers.append(lambda v: f"{v:.2f}")
    spelled = []
    for write in writers:
        rows = [[write(v) for v in row] for row in np.atleast_2d(answer.right)]
        if answer.right.ndim == 0:
            spelled += [rows[0][0], f"  {rows[0][0]} "]
        elif answer.right.ndim == 1:
            spelled += [" ".join(rows[0]), ", ".join(rows[0]), f"[{', '.join(rows[0])}]", "\n".join(rows[0])]
        else:
            spelled += [sep.join(" ".join(row) for row in rows) for sep in ("; ", " / ", "\n")]
            spelled.append("[" + ", ".join(f"[{', '.join(row)}]" for row in rows) + "]")
    return spelled
