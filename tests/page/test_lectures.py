"""The lectures' figures beside the textbook: the same numbers, from its own functions."""

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from modules import run_module

from rhapsode.textbook import attention as attention_chapter
from rhapsode.textbook import convolution, copying, recurrent
from rhapsode.textbook.explain import attention as attention_example
from rhapsode.textbook.explain import convolution as convolution_example
from rhapsode.textbook.explain import recurrent as recurrent_example
from rhapsode.textbook.explain import tape as tape_example
from rhapsode.textbook.explain.page import Lines, WorkedExample, number
from rhapsode.textbook.softmax import softmax

NUMBER = re.compile(r"-?\d+\.\d+|-?\d{2,}")
RANDOM = np.random.default_rng(4)


def compute(folder: Path, name: str, given: Any) -> Any:
    """What a function of mathematics.js gives."""
    lists = {key: value.tolist() if isinstance(value, np.ndarray) else value for key, value in given.items()}
    return run_module(folder, f'import {{ {name} }} from "./mathematics.js"; answer({name}(given));', lists)


@pytest.mark.parametrize(("stride", "padding"), [(1, 0), (2, 1), (3, 2)])
def test_convolution(stride: int, padding: int, tmp_path: Path) -> None:
    """Would catch a row of A at the wrong place, and a gradient that forgets the padding."""
    x, f = RANDOM.normal(size=(5, 7)), RANDOM.normal(size=(3, 2))
    found = compute(tmp_path, "convolution", {"x": x, "f": f, "stride": stride, "padding": padding})
    y = convolution.cross_correlate_one_channel(x, f, stride, padding)
    ones = np.ones((1, *y.shape))
    dx, df = convolution.cross_correlate_gradients(x[None], f[None, None], ones, stride, padding)
    np.testing.assert_allclose(found["y"], y)
    np.testing.assert_allclose(found["A"], convolution.toeplitz_2d(f, x.shape, stride, padding))
    np.testing.assert_allclose(found["dx"], dx[0], atol=1e-12)
    np.testing.assert_allclose(found["df"], df[0, 0])


@pytest.mark.parametrize("activation", recurrent.ACTIVATIONS)
def test_unrolled(activation: str, tmp_path: Path) -> None:
    """Would catch a gradient from the wrong step, or one that is missing."""
    W_hh, W_hx, W_hy = RANDOM.normal(size=(3, 3)), RANDOM.normal(size=(3, 2)), RANDOM.normal(size=(4, 3))
    x, y = RANDOM.normal(size=(5, 2)), np.array([0, 3, 2, 1, 1])
    given = {"W_hh": W_hh, "W_hx": W_hx, "W_hy": W_hy, "x": x, "y": y, "activation": activation}
    found = compute(tmp_path, "unrolled", given)
    f = recurrent.forward(W_hh, W_hx, W_hy, x, y, activation)
    g = recurrent.gradients(W_hh, W_hx, W_hy, x, y, activation)
    pairs = {"z": f.z, "h": f.h, "o": f.o, "p": f.y_hat, "loss": f.losses, "do": g.o, "dh": g.h, "dz": g.z}
    for name, expected in pairs.items():
        np.testing.assert_allclose([step[name] for step in found["steps"]], expected, atol=1e-9, err_msg=name)
    np.testing.assert_allclose(found["d_hh"], g.W_hh, atol=1e-9)


def test_vanishing_and_exploding(tmp_path: Path) -> None:
    """Would catch an eigenvalue that is a norm, and lengths of another matrix than the scaled one."""
    for W in (recurrent_example.W_HH, RANDOM.normal(size=(4, 4)), np.array([[0.0, 1.0], [0.0, 0.0]])):
        radius = float(np.abs(np.linalg.eigvals(W)).max())
        found = run_module(
            tmp_path,
            'import { gradientLengths, spectralRadius } from "./mathematics.js";'
            "answer([spectralRadius(given.W), gradientLengths(given.W, 1.1, 12)]);",
            {"W": W.tolist()},
        )
        np.testing.assert_allclose(found[0], radius, rtol=1e-4)
        scaled, direct = W * (1.1 / radius if radius else 1), np.zeros((12, len(W)))
        direct[-1] = 1 / np.sqrt(len(W))
        lengths = recurrent.contribution_norms(scaled, np.zeros_like(direct), direct, "identity")[:, -1]
        np.testing.assert_allclose(found[1], lengths[::-1], rtol=2e-3, atol=1e-12)


def test_the_tape_and_the_queue(tmp_path: Path) -> None:
    """Would catch a stack that pops as a queue, and a z whose two uses are not added up."""
    given = {"W": tape_example.WEIGHTS, "x": tape_example.INPUTS, "b": tape_example.BIAS, "y": 0}
    lists = {key: np.asarray(value).tolist() for key, value in given.items()}
    right, wrong = run_module(
        tmp_path, 'import { tape } from "./mathematics.js"; answer([tape(given), tape(given, true)]);', lists
    )
    for found, kind in ((right, tape_example.RecordingTape), (wrong, tape_example.Queue)):
        leaves, recording = tape_example._run(kind, given["x"], given["W"], given["b"], 0)
        moments = [(action, recording.names[module], stack) for action, module, stack in recording.moments]
        assert [(each["action"], each["name"], each["stack"]) for each in found["moments"]] == moments
        for name in ("W", "b", "x"):
            np.testing.assert_allclose(found["gradients"][name], leaves[name].output_gradient, atol=1e-12)
        popped = {each["name"]: each["value"] for each in found["moments"] if each["action"] == "pop"}
        for module, gradient in recording.gradients.items():
            np.testing.assert_allclose(popped[recording.names[module]], np.atleast_1d(gradient), atol=1e-12)


def test_attention(tmp_path: Path) -> None:
    """Would catch a head that reads another's matrices, and a look into the future."""
    X, H = RANDOM.normal(size=(5, 3)), 2
    W_q, W_k, W_v = RANDOM.normal(size=(H, 4, 3)), RANDOM.normal(size=(H, 4, 3)), RANDOM.normal(size=(H, 2, 3))
    heads = [{"W_q": W_q[h].tolist(), "W_k": W_k[h].tolist(), "W_v": W_v[h].tolist()} for h in range(H)]
    found = compute(tmp_path, "attention", {"X": X, "heads": heads})
    for h in range(H):
        Q, K, V = X @ W_q[h].T, X @ W_k[h].T, X @ W_v[h].T
        expected = attention_chapter.attend(Q, K, V)
        np.testing.assert_allclose(found[h]["A"], expected.A, atol=1e-12)
        np.testing.assert_allclose(found[h]["O"], expected.O, atol=1e-12)


def test_copying(tmp_path: Path) -> None:
    """Would catch a word's two places of which only one counts."""
    z, scores, tokens, u = RANDOM.normal(size=5), RANDOM.normal(size=6), np.array([0, 3, 0, 1, 4, 0]), 0.7
    given = {"names": list("abcde"), "z": z, "scores": scores, "tokens": tokens, "u": u}
    found = compute(tmp_path, "copying", given)
    A = softmax(scores[None])
    c = copying.copy_distribution(A, tokens, 5)
    np.testing.assert_allclose(found["c"], c[0])
    np.testing.assert_allclose(found["p"], copying.mixture(z[None], np.array([u]), c)[0])


def test_numbers_are_written_as_in_the_textbook(tmp_path: Path) -> None:
    """Would catch a figure that rounds otherwise than the page it stands for."""
    values = [0.0, -0.0, 1e-16, 1.0, -2.5, 0.125, 1 / 3, 2 / 3, 0.0009994, 1e-7, -1234.56789, 1e-12, 12345678.25]
    found = run_module(tmp_path, 'import { number } from "./mathematics.js"; answer(given.map(number));', values)
    assert found == [number(value) for value in values]


def lines_of(example: WorkedExample) -> str:
    lines = [block.lines if isinstance(block, Lines) else [getattr(block, "text", "")] for block in example.blocks]
    return "\n".join(line for each in lines for line in each)


def test_what_is_shown_is_what_the_textbook_shows(open_page: Any, offline_file: Path) -> None:
    """Would catch a default of a figure that is not the textbook's, and a step that the keys do not reach."""
    from playwright.sync_api import expect

    page = open_page(offline_file.as_uri())
    page.locator("#story").press("Home")
    examples = {
        "convolution": lines_of(convolution_example.convolution()),
        "unrolled": lines_of(recurrent_example.unrolling()),
        "tape": lines_of(tape_example.tape()),
        "attention": lines_of(attention_example.attention()),
        "temperature": lines_of(attention_example.temperature()),
    }
    page.get_by_role("link", name="Lectures").click()
    for chapter, expected in examples.items():
        page.locator(f"#view-lectures nav a[href='#lectures/{chapter}']").click()
        figure = page.locator("#view-lectures .figure")
        figure.focus()
        count = int(page.locator("#view-lectures .steps + span").text_content().split()[-1])
        for step in range(1, count + 1):
            shown = " ".join(figure.locator(".formula").all_text_contents())
            assert set(NUMBER.findall(shown)) <= set(NUMBER.findall(expected)), (chapter, step)
            assert page.locator("#view-lectures .steps + span").text_content() == f"{step} of {count}"
            page.keyboard.press("ArrowRight")
    problem = page.locator("#view-lectures [role=alert]")
    assert problem.text_content() == ""
    page.get_by_role("button", name="Take the model's numbers").click()  # temperature is the last of these
    page.locator("#view-lectures .bars li").nth(7).wait_for()
    page.locator("#view-lectures summary").click()
    page.get_by_label("Logits s").fill("2 x")
    assert problem.text_content() == "Logits s: only numbers, such as 1 0 / 2 -1"
    page.locator("#view-lectures nav a[href='#lectures/copying']").click()
    page.get_by_role("heading", name="The copy head").wait_for()
    page.get_by_role("button", name="Take the model's numbers").click()
    expect(problem).to_have_text("Nothing stands before the beginning: move the cursor in the story")
