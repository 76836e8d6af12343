import json
import re
import subprocess
import sys

import numpy as np
import pytest
from typer.testing import CliRunner

from rhapsode.textbook import recurrent
from rhapsode.textbook.explain import app, page

NAMES = (
    *("convolution", "parameters", "unrolling", "backpropagation", "tape", "attention", "temperature"),
    *("rmsnorm", "residual", "pairs", "copying", "muon"),
)


def explain(*arguments: str, stdin: str | None = None) -> str:
    """What the command prints. ValueError and OSError come through, as the program around it expects."""
    result = CliRunner(env={"COLUMNS": "200"}).invoke(app, arguments, input=stdin)
    if result.exception and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert result.exit_code == 0, result.output
    return result.output


def test_convolution_shows_the_answers_of_the_assignment():
    text = explain("convolution")
    assert "y[3,2] = (-1)·(-3) + (-1)·1 + (-1)·3 + (-1)·5 + 8·2 + (-1)·0 + (-1)·4 + (-1)·(-3) + (-1)·1 = 8" in text
    image = " / ".join(["1 2 3 4"] * 6)
    text = explain("convolution", "--image", image, "--filter", "1 1 / 1 1", "--stride", "2")
    assert "rows      m = floor((6 + 2·0 - 2) / 2) + 1 = 3" in text
    assert "columns   m = floor((4 + 2·0 - 2) / 2) + 1 = 2" in text


def test_convolution_of_the_users_numbers():
    text = explain("convolution", "--image", "1, -2 / 0.5 3", "--filter", "2", "--output-gradient", "1 0 / 0 1")
    assert "y[1,2] = 2·(-2) = -4" in text
    assert "df = [ 4 ]" in text  # 1 · 1 + 1 · 3
    assert "A = [ 2 · · · ]" in text


@pytest.mark.parametrize(
    ("arguments", "shared", "unshared"),
    [
        ([], "16", "1,600"),
        (["--input-size", "40x40", "--channels", "3"], "48", "17,328"),
    ],
)
def test_parameters_shows_the_answers_of_the_assignment(arguments, shared, unshared):
    text = explain("parameters", *arguments)
    assert re.search(rf"^  shared +{shared}$", text, re.MULTILINE)
    assert re.search(rf"^  unshared +{unshared}$", text, re.MULTILINE)


def test_unrolling_shows_each_value_and_gradient_of_the_three_steps():
    """One unit, W_hh = 2, W_hx = 1, identity: h = (1, 3, 7). With both outputs equal, dL/do = ± 1/2."""
    text = explain(
        *("unrolling", "--inputs", "1/1/1", "--targets", "0 0 0", "--activation", "identity"),
        *("--w-hh", "2", "--w-hx", "1", "--w-hy", "0 / 0"),
    )
    assert [f"h_{t} = ψ(z_{t}) = ({h})" in text for t, h in ((1, 1), (2, 3), (3, 7))] == [True] * 3
    assert all(f"dL/do_{t} = ŷ_{t} - onehot(0) = (-0.5, 0.5)" in text for t in (1, 2, 3))
    assert "           = [ -5.5 ]\n             [  5.5 ]" in text  # dL/dW_hy: (1 + 3 + 7) / 2
    assert "h_0 ─ W_hh → h_1 ─ W_hh ──→ h_2 ─ W_hh ──→ h_3" in text


@pytest.mark.parametrize("activation", recurrent.ACTIVATIONS)
def test_backpropagation_prints_terms_that_add_up(activation):
    """The printed contributions, read back, sum to the printed dL/dh_1."""
    text = explain("backpropagation", "--activation", activation, "--start", "0.3 -0.2")
    block = text[text.index("dL/dh_1 =") :].split("\n\n")[0].splitlines()[1:]
    vectors = [np.array([float(v) for v in re.search(r"\((.*?)\)", line)[1].split(", ")]) for line in block]
    assert len(vectors) == 5
    np.testing.assert_allclose(sum(vectors[:-1]), vectors[-1], atol=3e-4)
    assert "difference from central differences is below 1e-6" in text


def test_tape_grows_and_shrinks():
    text = explain("tape")
    tapes = re.findall(r"^  +tape: (.*)$", text, re.MULTILINE)
    assert tapes == [
        "linear | bias | sigmoid | multiply",
        "linear | bias | sigmoid",
        "linear | bias",
        "linear",
        "(empty)",
    ]
    gradients = text[text.index("3. The gradients") : text.index("4. Why a stack")]
    assert "dL/db = (-0.2096, 0.2365, 0.4513)" in gradients
    assert "dL/db = (0, 0, 0)" in text[text.index("4. Why a stack") :]


def test_attention_hides_the_future_unless_told_otherwise():
    assert "S[1,2]" not in explain("attention")
    assert "S[1,2]" in explain("attention", "--not-causal")
    assert re.search(r"heads_joined +3 x 2 x 1 +T x H x d_v", explain("attention"))
    text = explain("attention", "--inputs", "1 0 / 0 1", "--w-q", "1 1", "--w-k", "1 1", "--w-v", "4 8 / 0 2")
    assert "o_2 = 0.5·(4, 0) + 0.5·(8, 2) = (6, 1)" in text


def test_temperature_of_the_users_logits():
    text = explain("temperature", "--logits", "0 0", "--temperatures", "0 7", "--names", "cat dog")
    assert re.search(r"^  cat +1 +0\.5$", text, re.MULTILINE)
    assert re.search(r"^  dog +0 +0\.5$", text, re.MULTILINE)


def test_rmsnorm_of_the_users_rows():
    """(3, 3) has the root mean square 3, and is its own direction: with g = (1, 0) half of g is taken out."""
    text = explain("rmsnorm", "--inputs", "3 3 / 6 6", "--scale", "1 2", "--output-gradient", "1 0 / 1 0")
    assert "r    = √((3² + 3²) / 2) = 3" in text
    assert text.count("n(x) = x̂ ∘ w = (1, 2)") == 2
    assert "(g ∘ w - 0.5 x̂) / 3 = (0.1667, -0.1667)" in text
    assert "(g ∘ w - 0.5 x̂) / 6 = (0.0833, -0.0833)" in text
    assert "dL/dw = Σ_rows g ∘ x̂ = (2, 0)" in text
    assert "largest gradient, is below 1e-6" in text


def test_residual_of_the_users_numbers():
    """One number: its norm is its sign, so through the layer comes nothing, and past it all of the gradient."""
    text = explain("residual", "--inputs", "3", "--w-1", "2", "--w-2", "0.5", "--output-gradient", "7", "--layers", "2")
    assert "y = W_2 s      = (2)" in text
    assert "x + y          = (5)" in text
    assert "dL/dx = (7) + (0) = (7)" in text
    assert re.findall(r"^  x_(\d) +(\S+) +(\S+)$", text, re.MULTILINE) == [
        ("2", "7", "7"),
        ("1", "7", "0"),
        ("0", "7", "0"),
    ]


def test_residual_and_no_residual_differ_in_a_stack():
    """The built-in stack: what the sum keeps, and what vanishes without it."""
    lengths = re.findall(r"^  x_\d+ +(\S+) +(\S+)$", explain("residual"), re.MULTILINE)
    assert len(lengths) == 13
    assert float(lengths[-1][0]) > 1
    assert float(lengths[-1][1]) < 1e-5


def test_copying_of_the_users_numbers():
    """Equal scores on `a b a`, g = 1/2, three equal words: p(a) = 1/6 + 1/3, of which two thirds were copied."""
    given = ("--tokens", "0 1 0", "--scores", "0 0 0", "--logits", "1 1 1", "--gate", "0", "--names", "a b c")
    text = explain("copying", *given, "--target", "0")
    assert "ℓ = -log(0.5·0.3333 + 0.5·0.6667) = -log 0.5 = 0.6931" in text
    assert "it stands at: 1, 3" in text
    assert "r = g c(y) / p(y) = 0.6667 " in text
    assert "dℓ/du   = g - r = -0.1667" in text
    assert "dℓ/ds_n = r (A_n - ρ_n) = (-0.1111, 0.2222, -0.1111)" in text
    assert "The largest difference from central differences is below 1e-8." in text
    nowhere = explain("copying", *given, "--target", "2")
    assert "it stands at: nowhere" in nowhere
    assert "dℓ/ds_n = r (A_n - ρ_n) = (0, 0, 0)" in nowhere


def test_pairs_of_the_users_tokens():
    """Row of (2, 1) among 10: 2,000,006 + 7,919 = 2,007,925. Cut between them, the 1 would be taken for (0, 1)."""
    text = explain("pairs", "--tokens", "2 1", "--rows", "10")
    assert re.search(r"^  2 +2 +1 +1,000,003·2 \+ 7,919·1 = 2,007,925 +5$", text, re.MULTILINE)
    assert re.search(r"^  uncut +5$", text, re.MULTILINE)
    assert re.search(r"^  with the token before in the state +5$", text, re.MULTILINE)
    assert re.search(r"^  without it +9$", text, re.MULTILINE)
    assert re.search(
        r"^  1 +1 +2 .* = 1,015,841 +1$", explain("pairs", "--tokens", "2", "--rows", "10", "--before", "1"), re.M
    )
    shared = explain("pairs", "--tokens", "0 2 4", "--rows", "2", "--vocabulary", "300")
    assert "dL/dP[0] = dL/dx_1 + dL/dx_2 + dL/dx_3    shared by the pairs (0, 0), (0, 2), (2, 4)" in shared
    assert "pairs in a row: 45000 at least, 45000 at most, 45000 on average" in shared


def test_muon_of_the_users_update():
    """A matrix with orthogonal columns of lengths 3 and 4 (σ / ‖U‖ = 0.6, 0.8): its polar factor swaps two axes."""
    text = explain("muon", "--update", "0 4 / 3 0", "--steps", "1", "--coefficients", "2 -1 0")
    assert "σ = (4, 3)" in text
    assert "P Qᵀ = [ 0 1 ]\n         [ 1 0 ]" in text
    # p(σ) = 2 σ - σ³
    assert re.search(r"^  1 +1\.0880 +0\.9840 +0\.0880 ", text, re.MULTILINE)
    tall = explain("muon", "--update", "1 / 2 / 2 / 0", "--learning-rate", "0.5")
    assert "√max(1, m/n) = √max(1, 4/1) = 2" in tall


def test_numbers_from_a_file_and_from_standard_input(tmp_path):
    """An option overrides the file; text and lists mean the same."""
    file = tmp_path / "numbers.json"
    file.write_text(json.dumps({"image": [[1, 2], [3, 4]], "filter": "1 0 / 0 1", "stride": 5}))
    from_file = explain("convolution", "--numbers", str(file), "--stride", "1")
    assert "y[1,1] = 1·1 + 0·2 + 0·3 + 1·4 = 5" in from_file
    assert "/ 1) + 1 = 1" in from_file
    assert explain("convolution", "--numbers", "-", "--stride", "1", stdin=file.read_text()) == from_file
    heads = {"w_q": [[[1, 0]], [[0, 1]]], "w_k": "1 0 | 0 1", "w_v": [[[1, 0]], [[0, 1]]], "causal": False}
    assert "2 heads" in explain("attention", "--numbers", "-", stdin=json.dumps(heads))
    one_head = {"w_q": [[1, 0]], "w_k": [[1, 0]], "w_v": [[1, 0]]}
    assert "1 head," in explain("attention", "--numbers", "-", stdin=json.dumps(one_head))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["convolution", "--image", "1 2 / 3"], "image: row 2 has 1 numbers, row 1 has 2"),
        (["convolution", "--image", "1 x"], "image: 'x' is not a number"),
        (["convolution", "--image", "1 nan"], "image: 'nan' is not a number"),
        (["convolution", "--image", ""], "image: expected a matrix such as '1 0 -2 / 2 9 5'"),
        (["convolution", "--stride", "1.5"], "stride: expected a whole number, got '1.5'"),
        (["convolution", "--stride", "0"], "stride must be >= 1, got 0"),
        (["convolution", "--output-gradient", "1"], "output_gradient must be 4x4 like the output, got 1x1"),
        (["parameters", "--input-size", "22"], "input_size: expected rows and columns such as '22 22', got"),
        (["parameters", "--filter-size", "30 4"], "filter of size 30 is larger than the padded input of"),
        (["unrolling", "--targets", "0 1"], "targets: one for each of the 3 inputs is needed, got 2"),
        (["unrolling", "--targets", "0 1 2"], "targets must be between 0 and 1 (w_hy's rows), got 2"),
        (["unrolling", "--w-hh", "1 2"], "w_hh must be square, got 1 rows and 2 columns"),
        (["unrolling", "--w-hx", "1 2"], "w_hx must be 2x1"),
        (["unrolling", "--w-hy", "1"], "w_hy must have 2 columns like w_hh, got 1"),
        (["unrolling", "--start", "1"], "start must have 2 numbers like w_hh's rows, got 1"),
        (["backpropagation", "--activation", "gelu"], "activation must be one of identity, relu, tanh, got"),
        (["tape", "--inputs", "1"], "weights must have 1 columns, one for each input, got 2"),
        (["tape", "--bias", "1"], "bias must have 3 numbers, one for each row of weights, got 1"),
        (["tape", "--target", "3"], "target must be between 0 and 2 (weights' rows), got 3"),
        (["attention", "--w-q", "1 | 1"], "w_q must have 2 columns, one for each number of an input, got 1"),
        (["attention", "--w-q", "1 1"], "w_q must have as many heads as w_k, 2, got 1"),
        (["attention", "--w-q", "1 1 | 1 1"], "w_q and w_k must have equally many rows (d_k), got 1 and 2"),
        (["attention", "--w-v", "1 1 | 1 1 / 2 2"], "w_v: head 2 has the shape (2, 2), head 1 (1, 2)"),
        (["attention", "--w-o", "1"], "w_o must have 2 columns (heads times d_v), got 1"),
        (["temperature", "--temperatures", "-1"], "temperature must be finite and >= 0, got -1.0"),
        (["temperature", "--names", "a b"], "names: one for each of the 4 logits is needed, got 2"),
        (["temperature", "--logits", ""], "logits: expected numbers such as '1 0 -2', got []"),
        (["rmsnorm", "--scale", "1"], "scale must have 2 numbers, one for each column of inputs, got 1"),
        (["rmsnorm", "--output-gradient", "1 2"], "output_gradient must be 3x2 like inputs, got 1x2"),
        (["residual", "--inputs", "1"], "w_1 must have 1 columns, one for each input, got 2"),
        (["residual", "--w-1", "1 2"], "w_2 must be 2x1, back from w_1's rows to the inputs, got 2x3"),
        (["residual", "--output-gradient", "1"], "output_gradient must have 2 numbers like inputs, got 1"),
        (["residual", "--inputs", "0 0"], "inputs must not be all zeros"),
        (["residual", "--layers", "0"], "layers must be between 1 and 1000, got 0"),
        (["pairs", "--tokens", "1 -1"], "tokens must be >= 0 and below 2, got -1"),
        (["pairs", "--tokens", "5", "--vocabulary", "5"], "tokens must be >= 0 and below 5, got 5"),
        (["pairs", "--tokens", "1e9"], "tokens must be >= 0 and below 2000, got 1000000000"),
        (["pairs", "--before", "-2"], "before must be >= 0 and below 6, got -2"),
        (["pairs", "--vocabulary", "0"], "vocabulary must be between 1 and 2000, got 0"),
        (["pairs", "--rows", "0"], "rows must be >= 1, got 0"),
        (["pairs", "--cut", "7"], "cut must be between 0 and 6, got 7"),
        (["copying", "--scores", "1 2"], "scores: one for each of the 5 tokens is needed, got 2"),
        (["copying", "--tokens", "1 1 1 1 5"], "tokens must be >= 0 and below 5, the number of logits, got 5"),
        (["copying", "--target", "-1"], "target must be >= 0 and below 5, the number of logits, got -1"),
        (["copying", "--names", "a b"], "names: one for each of the 5 logits is needed, got 2"),
        (["muon", "--coefficients", "1 2"], "coefficients must be three numbers a b c, got 2"),
        (["muon", "--coefficients", "9 9 9"], "coefficients (9, 9, 9): the iteration grows without end"),
        (["muon", "--steps", "0"], "steps must be between 1 and 100, got 0"),
        (["muon", "--learning-rate", "0"], "learning_rate must be > 0, got 0.0"),
        (["muon", "--update", "0 0"], "update must have a finite length above 0, got 0.0"),
        (["muon", "--update", "1e300 1"], "update must have a finite length above 0, got inf"),
    ],
)
def test_bad_numbers_give_one_clear_line(arguments, message):
    with pytest.raises(ValueError, match=re.escape(message)) as error:
        explain(*arguments)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "standard input is not JSON"),
        ("[1]", 'expected one JSON object such as {"image": …}'),
        ('{"images": 1}', "unknown name 'images', known are image, filter, stride, padding, output_gradient"),
        ('{"image": [1, 2]}', "image: expected a matrix"),
        ('{"image": [[true]]}', "image: True is not a number"),
        ('{"stride": null}', "stride: None is not a number"),
    ],
)
def test_bad_files_give_one_clear_line(content, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        explain("convolution", "--numbers", "-", stdin=content)
    with pytest.raises(FileNotFoundError):
        explain("convolution", "--numbers", "absent.json")


def test_as_a_program_errors_are_one_line_and_exit_code_2():
    command = [sys.executable, "-m", "rhapsode.textbook.explain", "tape", "--target", "9"]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 2
    assert result.stdout == ""
    assert result.stderr == "error: target must be between 0 and 2 (weights' rows), got 9\n"


def test_the_help_needs_no_numpy():
    """The command line of the whole package imports this one; `--help` must stay quick."""
    code = "import sys, rhapsode.textbook.explain; print('numpy' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "False\n"


@pytest.mark.parametrize("name", NAMES)
def test_the_page_is_self_contained_and_says_what_the_terminal_says(name, tmp_path):
    pytest.importorskip("matplotlib")
    file = tmp_path / "page.html"
    assert explain(name, "--html", str(file)).strip() == f"wrote {file}"
    html = file.read_text(encoding="utf-8")
    assert html.count("<svg") == html.count("<figure>") >= 1
    assert "<script" not in html
    assert not re.search(r'(?:src|href)="(?!#|data:)', html)
    ids = re.findall(r'\bid="([^"]+)"', html)
    assert len(ids) == len(set(ids))
    assert set(re.findall(r'href="#([^"]+)"|url\(#([^)]+)\)', html)) <= {
        pair for i in ids for pair in ((i, ""), ("", i))
    }
    for line in explain(name).splitlines():
        if line.startswith("  ") and not re.search(r"[<>&'\"]", line):
            assert line[2:] in html
    assert list(tmp_path.iterdir()) == [file]
    explain(name, "--html", str(file))
    assert file.read_text(encoding="utf-8") == html


@pytest.mark.parametrize("steps", [1, 12])
def test_sequences_shorter_and_longer_than_the_built_in_ones(steps, tmp_path):
    pytest.importorskip("matplotlib")
    numbers = ["--inputs", "/".join(["1"] * steps), "--targets", " ".join(["1"] * steps)]
    for name in ("unrolling", "backpropagation"):
        assert f"dL/dh_{steps} =" in explain(name, *numbers)
        explain(name, *numbers, "--html", str(tmp_path / f"{name}.html"))


def test_without_matplotlib_the_page_says_what_to_install(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(ValueError, match=re.escape("--html needs matplotlib: pip install 'rhapsode[study]'")):
        explain("tape", "--html", str(tmp_path / "page.html"))
    assert "u = W x" in explain("tape")


def test_how_numbers_are_written():
    values = [2.0, -0.0, 1e-17, -3e-14, 0.5, 0.125, 0.1 + 0.2, 1 / 3, 0.00012, -2 / 3, 1e6]
    expected = ["2", "0", "0", "0", "0.5", "0.125", "0.3", "0.3333", "1.2e-04", "-0.6667", "1000000"]
    assert [page.number(v) for v in values] == expected


def test_names_are_shown_as_they_are(tmp_path):
    """Would catch `$$` that breaks a figure, `:cat:` that becomes a picture, and an escape sequence that is obeyed."""
    given = ("--logits", "1 2 3 4 5", "--names", "$$ :cat: [red] \x1b[31m <b>")
    shown = explain("temperature", *given)
    explain("temperature", *given, "--html", str(tmp_path / "page.html"))
    drawn = (tmp_path / "page.html").read_text(encoding="utf-8")
    for name in ("$$", ":cat:", "[red]", r"\x1b[31m", "<b>"):
        assert name in shown
        assert name.replace("<b>", "&lt;b&gt;") in drawn
    assert "\x1b" not in drawn


def test_an_example_that_nobody_could_read_is_refused():
    """Would catch 80 GB for the Jacobian of 100,000 logits."""
    with pytest.raises(ValueError, match="logits: 100,000 numbers, a worked example has at most 4,096; give fewer"):
        explain("temperature", "--logits", "1 " * 100_000)
    with pytest.raises(ValueError, match="image: 10,000 numbers"):
        explain("convolution", "--image", "/".join(["1 " * 100] * 100))
