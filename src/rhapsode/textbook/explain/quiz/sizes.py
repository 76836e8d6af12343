"""Questions: how large the output of a convolution is, and how many numbers it learns."""

import numpy as np

from rhapsode.textbook import convolution as conv
from rhapsode.textbook.explain.page import Lines, PageBlock, Text
from rhapsode.textbook.explain.quiz.answers import NumbersAnswer, ShapeAnswer, told_apart
from rhapsode.textbook.explain.quiz.question import Question

RULE = "`m = floor((n + 2p - d (k - 1) - 1) / s) + 1` along each axis, with stride s, padding p and dilation d."


def parameters(kind: str, rng: np.random.Generator) -> Question:
    """The learned weights of a layer that is `shared`, `unshared` or `dense`."""
    (n_h, n_w), (k_h, k_w) = (rng.integers(*span, 2).tolist() for span in ((7, 33), (2, 6)))
    C_in, C_out = rng.integers(1, 5, 2).tolist()
    stride, padding = int(rng.integers(1, 4)), int(rng.integers(0, 3))
    counts = conv.parameter_counts((C_in, n_h, n_w), (k_h, k_w), C_out, stride, padding)
    m_h, m_w = conv.output_size(n_h, k_h, stride, padding), conv.output_size(n_w, k_w, stride, padding)
    right = np.array(float(counts[kind]))
    asked = {
        "shared": "How many weights does it learn?",
        "unshared": "How many weights would a locally connected layer learn: the same patches, but no sharing, so that "
        "each position has filters of its own?",
        "dense": "How many weights would a dense layer learn, from all numbers of the input to all of the output?",
    }
    layer = {"shared": "the convolution", "unshared": "the locally connected layer", "dense": "the dense layer"}
    shared = f"{C_out}·{C_in}·{k_h}·{k_w}"
    sum_up = {
        "shared": ("output channels · input channels · filter rows · filter columns", f"{shared} = {counts['shared']}"),
        "unshared": (
            "as many as the shared filters have, once for each position",
            f"{m_h}·{m_w}·{shared} = {counts['unshared']}",
        ),
        "dense": (
            "numbers of the output · numbers of the input",
            f"({C_out}·{m_h}·{m_w})·({C_in}·{n_h}·{n_w}) = {counts['dense']}",
        ),
    }
    others = [(float(counts[other]), f"the count of {layer[other]}") for other in counts if other != kind]
    positions, last = m_h * m_w, (m_h - 1) * (m_w - 1)
    return Question(
        [
            Text(
                f"The input has {_channels(C_in)} of {n_h}x{n_w}. A convolution with {C_out} "
                f"filter{'s' * (C_out > 1)} of {k_h}x{k_w}, stride {stride}, padding {padding} is laid on it. "
                f"{asked[kind]} (Biases are not counted.)"
            )
        ],
        NumbersAnswer(
            "weights",
            right,
            whole=True,
            mistakes=told_apart(
                right,
                *others,
                (right / C_in, "the count for one input channel"),
                (right / C_out, "the count for one output channel"),
                (right / (C_in * C_out), "the count for one input and one output channel"),
                (
                    right * last / positions if kind != "shared" else None,
                    "with an output that lacks the + 1 of its size",
                ),
                (right + C_out, "with biases"),
            ),
        ),
        [
            *_size_steps((n_h, n_w), (k_h, k_w), stride, padding, 1),
            Text(f"{sum_up[kind][0].capitalize()}:"),
            Lines([f"weights = {sum_up[kind][1]}"]),
        ],
        (
            *("parameters", "--input-size", f"{n_h}x{n_w}", "--channels", str(C_in), "--filter-size", f"{k_h}x{k_w}"),
            *("--output-channels", str(C_out), "--stride", str(stride), "--padding", str(padding)),
        ),
    )


def one_layer(rng: np.random.Generator) -> Question:
    """The size of the output, with channels."""
    n, k = rng.integers(9, 65, 2).tolist(), rng.integers(2, 8, 2).tolist()
    C_in, C_out = int(rng.integers(1, 4)), int(rng.integers(2, 33))
    stride, padding, dilation = int(rng.integers(1, 5)), int(rng.integers(0, 4)), int(rng.choice([1, 1, 2, 3]))
    dilation = dilation if dilation * (max(k) - 1) < min(n) else 1
    right = _sizes(n, k, stride, padding, dilation)
    forgotten = (
        (_sizes(n, k, stride, 0, dilation), "without the padding"),
        (_sizes(n, k, stride, padding, 1), "without the dilation"),
        (_sizes(n, k, 1, padding, dilation), "without the stride"),
        (tuple(m - 1 for m in right), "one too few: the first position counts too"),
        ((right[1], right[0]), "with rows and columns exchanged"),
    )
    mistakes = [((C_out, *sizes), reason) for sizes, reason in forgotten]
    mistakes += [((C_in, *right), "with the input's channels: each filter adds them up"), (right, "one channel of it")]
    return Question(
        [
            Text(
                f"An input of {_channels(C_in)} of {n[0]}x{n[1]} goes through a convolution with {C_out} filters of "
                f"{k[0]}x{k[1]}, stride {stride}, padding {padding}, dilation {dilation}. What is the size of the "
                "output: channels x rows x columns?"
            )
        ],
        ShapeAnswer("output", (C_out, *right), [m for m in mistakes if m[0] != (C_out, *right)]),
        [
            *_size_steps((n[0], n[1]), (k[0], k[1]), stride, padding, dilation),
            Text("Each filter makes one channel of the output, whatever the number of input channels."),
        ],
    )


def two_layers(rng: np.random.Generator) -> Question:
    """The size after two layers in a row."""
    n, first, second = int(rng.integers(40, 100)), _layer(rng), _layer(rng)
    middle = _size(n, *first)
    right = np.array(float(_size(middle, *second)))
    as_one = _size(n, first[0] + second[0] - 1, first[1] * second[1], first[2] + second[2], 1)
    return Question(
        [
            Text(
                f"A sequence of {n} numbers goes through two convolutions, one after the other. "
                + " ".join(
                    f"The {name} has a filter of {k}, stride {s}, padding {p}, dilation {d}."
                    for name, (k, s, p, d) in (("first", first), ("second", second))
                )
                + " How many numbers come out of the second?"
            )
        ],
        NumbersAnswer(
            "m_2",
            right,
            whole=True,
            mistakes=told_apart(
                right,
                (float(middle), "the size after the first"),
                (float(as_one), "as one layer with the strides multiplied: each layer rounds down on its own"),
                (right - 1, "one too few: the first position counts too"),
                (float(_size(middle, second[0], second[1], 0, second[3])), "without the second's padding"),
            ),
        ),
        [Text(RULE), Lines([_size_line("m_1", n, *first), _size_line("m_2", middle, *second)])],
    )


def same_size(rng: np.random.Generator) -> Question:
    """The padding that leaves the size as it is."""
    n, k, dilation = int(rng.integers(28, 65)), int(rng.choice([3, 5, 7, 9])), int(rng.integers(1, 4))
    padding = next(p for p in range(n) if conv.output_size(n + 2 * p, dilation * (k - 1) + 1) == n)
    right = np.array(float(padding))
    return Question(
        [
            Text(
                f"A convolution with a filter of {k}x{k}, stride 1, dilation {dilation} should keep the size "
                f"of a {n}x{n} "
                "image. How many rows and columns of zeros must the padding add on each side?"
            )
        ],
        NumbersAnswer(
            "p",
            right,
            whole=True,
            mistakes=told_apart(
                right,
                (2.0 * padding, "both sides together"),
                ((k - 1) / 2, "without the dilation"),
                (dilation * k // 2, "of a filter that covers d k numbers: it covers d (k - 1) + 1"),
                (0.0, "no padding: the output would be smaller"),
            ),
        ),
        [
            Text("With stride 1 the output is `n + 2p - d (k - 1)` large. It is n again if"),
            Lines(["2p = d (k - 1)", f"p = {dilation}·({k} - 1)/2 = {padding}"]),
        ],
    )


def _layer(rng: np.random.Generator) -> tuple[int, int, int, int]:
    """Filter size, stride, padding and dilation of one layer."""
    return int(rng.integers(2, 6)), int(rng.integers(1, 4)), int(rng.integers(0, 3)), int(rng.integers(1, 3))


def _size(n: int, k: int, stride: int, padding: int, dilation: int) -> int:
    """The chapter's size; a dilated filter reaches over d (k - 1) + 1 numbers."""
    return conv.output_size(n, dilation * (k - 1) + 1, stride, padding)


def _sizes(n: list[int], k: list[int], stride: int, padding: int, dilation: int) -> tuple[int, int]:
    rows, columns = (_size(size, filter, stride, padding, dilation) for size, filter in zip(n, k, strict=True))
    return rows, columns


def _size_steps(n: tuple[int, int], k: tuple[int, int], stride: int, padding: int, dilation: int) -> list[PageBlock]:
    names = ("rows   ", "columns")
    lines = [_size_line(name, n[i], k[i], stride, padding, dilation) for i, name in enumerate(names)]
    return [Text(RULE), Lines(lines)]


def _size_line(name: str, n: int, k: int, stride: int, padding: int, dilation: int) -> str:
    m = _size(n, k, stride, padding, dilation)
    return f"{name} = floor(({n} + 2·{padding} - {dilation}·({k} - 1) - 1) / {stride}) + 1 = {m}"


def _channels(count: int) -> str:
    return f"{count} channel{'s' * (count > 1)}"
