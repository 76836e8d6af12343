"""The quiz's answers once more, by PyTorch, from what the student is shown: the text and the matrices of a question."""

import math
import re
from collections.abc import Callable
from fractions import Fraction
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from rhapsode.textbook.explain.page import Lines, Text
from rhapsode.textbook.explain.quiz.question import Question

ACTIVATIONS: dict[str, tuple[Callable, Callable]] = {
    "z": (lambda z: z, lambda h: h),
    "max(z, 0)": (torch.relu, lambda h: h),
    "tanh(z)": (torch.tanh, torch.atanh),
}


def text_of(blocks: Any) -> str:
    return " ".join(block.text for block in blocks if isinstance(block, Text))


def lines_of(blocks: Any) -> list[str]:
    return [line for block in blocks if isinstance(block, Lines) for line in block.lines]


def value(written: str) -> float:
    """`3`, `-0.25`, `5/8` or `log 3`."""
    if written.startswith("log "):
        return math.log(int(written[4:]))
    return float(Fraction(written.replace("·", "0")))


def shown(lines: list[str]) -> dict[str, torch.Tensor]:
    """Every matrix and vector in the lines by its name, float64; a matrix is found by where its brackets stand."""
    found: dict[str, torch.Tensor] = {}
    for i, line in enumerate(lines):
        for m in re.finditer(r"(\S+) = (?=\[ )", line):
            rows = []
            for below in lines[i:]:
                if below[m.end() : m.end() + 2] != "[ " or (rows and below[m.end() - 2 : m.end() - 1] == "="):
                    break
                rows.append([value(cell) for cell in below[m.end() + 2 :].split(" ]")[0].split()])
            found[m[1]] = torch.tensor(rows, dtype=torch.float64)
        for m in re.finditer(r"(\S+) += \(([^()]*)\)$", line):
            found[m[1]] = torch.tensor([value(cell) for cell in m[2].split(", ")], dtype=torch.float64)
    return found


def expected(question: Question) -> Any:
    """The right answer: numbers as an array, a shape as a tuple, a choice as the option's words."""
    text, given = text_of(question.blocks), shown(lines_of(question.blocks))
    return ORACLES[question.topic](text, given, question)


def _ints(pattern: str, text: str) -> list[int]:
    found = re.search(pattern, text)
    assert found, text
    return [int(group) for group in found.groups()]


def _output_size(text: str, given: Any, question: Question) -> Any:
    if text.startswith("An input of"):
        C_in, n_h, n_w, C_out, k_h, k_w, s, p, d = _ints(
            r"of (\d+) channels? of (\d+)x(\d+) .* with (\d+) filters of (\d+)x(\d+), "
            r"stride (\d+), padding (\d+), dilation (\d+)",
            text,
        )
        x, f = torch.zeros(1, C_in, n_h, n_w), torch.zeros(C_out, C_in, k_h, k_w)
        return tuple(F.conv2d(x, f, stride=s, padding=p, dilation=d).shape[1:])
    if text.startswith("A sequence"):
        x = torch.zeros(1, 1, *_ints(r"of (\d+) numbers", text))
        layers = re.findall(r"filter of (\d+), stride (\d+), padding (\d+), dilation (\d+)", text)
        assert len(layers) == 2
        for k, s, p, d in (map(int, layer) for layer in layers):
            x = F.conv1d(x, torch.zeros(1, 1, k), stride=s, padding=p, dilation=d)
        return np.array(x.shape[-1])
    k, d, n = _ints(r"filter of (\d+)x\d+, stride 1, dilation (\d+) should keep .* a (\d+)x", text)
    x, f = torch.zeros(1, 1, n, n), torch.zeros(1, 1, k, k)
    sizes = [F.conv2d(x, f, padding=p, dilation=d).shape[-1] for p in range(d * k // 2 - 1, d * k)]
    return np.array(range(d * k // 2 - 1, d * k)[sizes.index(n)])


def _parameters(text: str, given: Any, question: Question) -> Any:
    C_in, n_h, n_w, C_out, k_h, k_w, s, p = _ints(
        r"has (\d+) channels? of (\d+)x(\d+)\. .* with (\d+) filters? of (\d+)x(\d+), stride (\d+), padding (\d+)", text
    )
    layer = torch.nn.Conv2d(C_in, C_out, (k_h, k_w), s, p, bias=False)
    out = layer(torch.zeros(1, C_in, n_h, n_w))
    if "locally connected" in text:
        return np.array(layer.weight.numel() * out[0, 0].numel())
    if "dense" in text:
        return np.array(torch.nn.Linear(C_in * n_h * n_w, out.numel(), bias=False, device="meta").weight.numel())
    return np.array(layer.weight.numel())


def _entry(text: str, given: dict[str, torch.Tensor], question: Question) -> Any:
    s, p, i, j = _ints(r"Stride (\d+), padding (\d+)\. What is y\[(\d+),(\d+)\]", text)
    names = ["x", "f"] if "x" in given else ["x_1", "x_2", "f_1", "f_2"]
    half = len(names) // 2
    x, f = (torch.stack([given[name] for name in part])[None] for part in (names[:half], names[half:]))
    return F.conv2d(x, f, stride=s, padding=p)[0, 0, i - 1, j - 1].numpy()


def _toeplitz(text: str, given: dict[str, torch.Tensor], question: Question) -> Any:
    f = given["f"]
    if "row of A" in text:
        n_h, n_w, i, j = _ints(r"A (\d+)x(\d+) image .* gives y\[(\d+),(\d+)\]", text)
        units = torch.eye(n_h * n_w, dtype=torch.float64).reshape(-1, 1, n_h, n_w)
        return F.conv2d(units, f[None, None])[:, 0, i - 1, j - 1].numpy()
    n, s, p = _ints(r"of the (\d+) numbers x with the filter f, stride (\d+), padding (\d+)", text)
    units = torch.eye(n, dtype=torch.float64)[:, None]
    return F.conv1d(units, f[None, None], stride=s, padding=p)[:, 0].T.numpy()


def _convolution_gradient(text: str, given: dict[str, torch.Tensor], question: Question) -> Any:
    x, f = (given[name][None, None].requires_grad_() for name in "xf")
    [s] = _ints(r"stride (\d+)", text)
    F.conv2d(x, f, stride=s).backward(given["dy"][None, None])
    return (f if "What is df" in text else x).grad[0, 0].numpy()


def _softmax_gradient(text: str, given: dict[str, torch.Tensor], question: Question) -> Any:
    if "dp = dL/dp" in text:
        s = given["p"].log().requires_grad_()
        s.softmax(0).backward(given["dp"])
        return s.grad.numpy()
    s = given["s"]
    [target] = _ints(r"token is number (\d+)", text)
    if "W h" in text:
        h = given["h"]
        W = (s.outer(h) / (h @ h)).requires_grad_()  # one of the many W with W h = s
        F.cross_entropy(W @ h, torch.tensor(target - 1)).backward()
        return W.grad.numpy()
    s = s.requires_grad_()
    F.cross_entropy(s, torch.tensor(target - 1)).backward()
    return s.grad.numpy()


def _recurrent_gradient(text: str, given: dict[str, torch.Tensor], question: Question) -> Any:
    T, psi = re.search(r"t = 1 to (\d), with ψ\(z\) = (.+?)\. From", text).groups()
    activation, inverse = ACTIVATIONS[psi]
    W = given["W_hh"].requires_grad_()
    previous = given.get("h_0", torch.zeros(2, dtype=torch.float64))
    states = []
    loss = torch.tensor(0.0, dtype=torch.float64)
    for t in range(1, int(T) + 1):
        wanted = given.get(f"z_{t}", inverse(given.get(f"h_{t}", torch.full((2,), 0.5, dtype=torch.float64))))
        a = (wanted - W @ previous).detach()  # what the input must have added
        h = activation(W @ previous + a)
        h.retain_grad()
        states.append(h)
        loss = loss + given[f"d_{t}"] @ h
        previous = h
    loss.backward()
    return (W if "What is dL/dW_hh" in text else states[0]).grad.numpy()


def _attention_gradient(text: str, given: dict[str, torch.Tensor], question: Question) -> Any:
    A, dO = given["A"], given["dO"]
    T = len(A)
    wanted = re.search(r"What is d(\w)", text)[1]
    V = given.get("V", torch.ones(T, 2, dtype=torch.float64)).requires_grad_()
    S = A.log().masked_fill(A == 0, 0.0)
    if wanted == "S":
        S = S.requires_grad_()
        hidden = torch.ones(T, T).triu(1).bool()
        (S.masked_fill(hidden, -torch.inf).softmax(1) @ V).backward(dO)
        return S.grad.numpy()
    known = given.get("K", given.get("Q", torch.eye(T, 4, dtype=torch.float64)))
    scores = S * known.shape[1] ** 0.5
    other = (torch.linalg.pinv(known) @ (scores if wanted == "K" else scores.T)).T  # the Q or K that is not shown
    Q, K = (known, other) if wanted == "K" else (other, known)
    Q, K = Q.clone().requires_grad_(), K.clone().requires_grad_()
    F.scaled_dot_product_attention(Q[None], K[None], V[None], is_causal=True)[0].backward(dO)
    return {"V": V, "Q": Q, "K": K}[wanted].grad.numpy()


def _attention_shapes(text: str, given: Any, question: Question) -> Any:
    if "W_v and W_o have" in text:
        D, H = _ints(r"D = (\d+) .* H = (\d+) heads", text)
        layer = torch.nn.MultiheadAttention(D, H, bias="with biases" in text)
        return np.array(sum(p.numel() for p in layer.parameters()))
    if "hidden by" in text:
        T, H = _ints(r"T = (\d+) positions with H = (\d+)", text)
        layer = torch.nn.MultiheadAttention(H, H, batch_first=True)
        x, mask = torch.ones(1, T, H), torch.ones(T, T).triu(1).bool()
        _, weights = layer(x, x, x, attn_mask=mask, average_attn_weights=False)
        return np.array((weights > 0).sum().item())
    if "cache" in text:
        B, T, cached, H, d_k, d_v = _ints(
            r"B = (\d+) .* T = (\d+) new .* of (\d+) earlier .* H = (\d+) heads, d_k = (\d+), d_v = (\d+)", text
        )
        q, k, v = torch.zeros(B, H, T, d_k), torch.zeros(B, H, cached + T, d_k), torch.zeros(B, H, cached + T, d_v)
        if "scores" in text:
            return tuple((q @ k.transpose(-1, -2)).shape)
        return tuple(F.scaled_dot_product_attention(q, k, v).shape)
    T, D, H, d_k, d_v, D_out = _ints(
        r"T = (\d+) .* D = (\d+) numbers, H = (\d+) heads, d_k = (\d+), d_v = (\d+), outputs of D_out = (\d+)", text
    )
    X = torch.zeros(T, D)
    projections = {name: torch.nn.Linear(D, H * d) for name, d in (("Q", d_k), ("K", d_k), ("V", d_v))}
    Q, K, V = (layer(X).view(T, H, -1).transpose(0, 1) for layer in projections.values())
    O = F.scaled_dot_product_attention(Q, K, V, is_causal=True)
    joined = O.transpose(0, 1).reshape(T, -1)
    last = torch.nn.Linear(H * d_v, D_out)
    tensors = {
        "the queries Q": Q[0],
        "the keys K": K[0],
        "the values V": V[0],
        "the scores S": (Q @ K.transpose(1, 2))[0],
        "the attention weights A": (Q @ K.transpose(1, 2)).softmax(-1)[0],
        "the output O": O[0],
        "the matrix W_q": projections["Q"].weight.view(H, d_k, D)[0],
        "the matrix W_v": projections["V"].weight.view(H, d_v, D)[0],
        "the heads' outputs": joined,
        "the matrix W_o": last.weight,
        "the output Y": last(joined),
    }
    [tensor] = [t for name, t in tensors.items() if f"shape of {name}" in text]
    return tuple(tensor.shape)


def _tape(text: str, given: Any, question: Question) -> Any:
    formulas = [line for line in lines_of(question.blocks) if " = " in line]
    names = [line.split(" = ")[0] for line in formulas]
    if "taken off" in text or "What is dL/d" in text:
        x, w, b = (torch.tensor(float(v), requires_grad=True) for v in re.findall(r"[xwb] = (-?\d+)", text))
        u = w * x
        u.retain_grad()
        v = u + b
        # Off a queue, v has handed on its zero before L is popped: nothing flows through it.
        ((v.detach() if "taken off" in text else v) * u).backward()
        leaves = {"x": x, "w": w, "u": u}
        return leaves["u" if "taken off" in text else re.search(r"What is dL/d(\w)", text)[1]].grad.numpy()
    if "In which order are they popped" in text:
        return ", ".join(reversed(names))
    if "What is on the tape" in text:
        [pops] = _ints(r"after (\d+) pop", text)
        return " | ".join(names[:-pops])
    if "In which order must" in text:
        return "The one pushed last first: the tape is a stack."
    return "The first module would pass on a gradient of zero, as nothing has been added to it yet."


ORACLES: dict[str, Callable[[str, Any, Question], Any]] = {
    "output-size": _output_size,
    "parameters": _parameters,
    "convolution-entry": _entry,
    "toeplitz": _toeplitz,
    "convolution-gradient": _convolution_gradient,
    "softmax-gradient": _softmax_gradient,
    "recurrent-gradient": _recurrent_gradient,
    "attention-gradient": _attention_gradient,
    "attention-shapes": _attention_shapes,
    "tape": _tape,
}
