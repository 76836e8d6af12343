"""Small lies in the source, and the test that must find each of them.

    python tests/mutants.py               a table of all; exit code 1 where a lie was not found
    python tests/mutants.py WORD ...      those with one of the words in their name

A mutant is one text in one file of src/rhapsode replaced by another, in a copy of the tree; the copy is put first on
the path of a process of its own, which runs the named test. The mutant is found if the test fails by an assertion: a
mutant that cannot even run proves nothing. The same tests must pass on an unchanged copy. Who moves code points the
mutant at its new file; one whose text is not there exactly once is an error.
"""

import os
import shutil
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from clean_processes import context_with, stop_server

TESTS = Path(__file__).resolve().parent
SOURCE = TESTS.parent / "src" / "rhapsode"
SECONDS = 1_800  # after which tests count as stuck: to end a hang, not to measure a machine

EQUATIONS = "textbook/test_stacked.py::test_model_and_textbook_agree"
LOSS = "textbook/test_stacked.py::test_loss_and_its_gradient_agree_with_the_textbook"
DECODING = "textbook/test_stacked.py::test_decoding_and_scoring_agree_with_the_textbook"
BLOCKS = "test_kernels_gated.py::test_values_and_gradients_equal_the_stepwise_equation"
NAMES = "textbook/test_stacked.py::test_the_model_has_the_parameters_that_its_config_says"
TRAINING = "textbook/test_stacked.py::test_a_whole_training_run_is_the_textbooks"
CURVE = "golden/test_golden.py::test_twenty_steps_of_training_lose_what_they_lost"
ENGINE = "decode/test_engine.py::test_what_a_request_gets_depends_on_nothing_else[kernel-plain]"
SCORED = "decode/test_engine.py::test_what_was_written_is_scored_as_it_was_drawn"
STORY = "golden/test_golden.py::test_an_old_run_writes_the_story_that_it_wrote"
ALONE = "test_model.py::test_attention_alone_is_a_model_whose_recurrence_puts_out_nothing"
LABELS = "studies/test_study_tasks.py::test_a_batch_has_steps_and_their_answers_and_no_answer_is_read"
ANSWERS = "studies/test_study_tasks.py::test_answers_are_those_of_a_brute_force"
COIN = "test_minimal_pairs.py::test_a_coin_gets_half_and_a_tie_is_half_a_point"


@dataclass(frozen=True)
class Mutant:
    """name: what is lost. file: below src/rhapsode. old: a text that is there once. test: who must find it."""

    name: str
    file: str
    old: str
    new: str
    test: str


MODEL, NORM, RECURRENCE, ATTENTION = "model.py", "kernels/norm.py", "kernels/recurrence.py", "kernels/attention.py"
GATED, COPYING, COPY_LOSS = "kernels/gated.py", "copying.py", "kernels/copying.py"
TASKS = "studies/tasks.py"
STEP, LOOP, GRADIENTS = "training/step.py", "training/loop.py", "training/gradients.py"
OPTIMIZER, CELLS = "training/optimizer.py", "cells.py"
REQUESTS, PREFIXES, TEXTS = "decode/requests.py", "decode/prefixes.py", "decode/texts.py"

MUTANTS = [
    Mutant("residual of the recurrent network", MODEL, "x = x + self._drop(y)", "x = self._drop(y)", EQUATIONS),
    Mutant("residual of attention", MODEL, "x = x + self._drop(a)", "x = self._drop(a)", EQUATIONS),
    Mutant("residual of the feed-forward", MODEL, "x = x + self._drop(self.f", "x = self._drop(self.f", EQUATIONS),
    Mutant("gate's nonlinearity", CELLS, "F.silu(self.gate(i))", "self.gate(i)", EQUATIONS),
    Mutant("feed-forward's square", NORM, "return positive.square()", "return positive", EQUATIONS),
    Mutant("norm's learned scale", NORM, "return normal * weight", "return normal.clone()", EQUATIONS),
    Mutant("norm's division by the root", NORM, "normal = x * scale", "normal = x.clone()", EQUATIONS),
    Mutant("norm's gradient along x", NORM, "(normal, mean, value=-1)", "(normal, mean, value=0)", LOSS),
    Mutant("gradient through time", RECURRENCE, "_add_product(g, following, weight)", "g.add_(following)", LOSS),
    Mutant("what a gate keeps", GATED, "a[now], c[now], value=-1,", "a[now], c[now], value=0,", EQUATIONS),
    Mutant("gradient through a gate", GATED, "torch.addcmul(g, *following, out=G)", "G.copy_(g)", LOSS),
    Mutant("gradient across a block of steps", GATED, "torch.add(g, carried, out=G)", "G.copy_(g)", BLOCKS),
    Mutant("how much is copied", COPYING, "weights * gate.sigmoid())", "weights)", EQUATIONS),
    Mutant("key across a cut", COPYING, "else copies.next_key[:, None]", "else made[:, :1]", EQUATIONS),
    Mutant("the copier's share", COPY_LOSS, "* scale[now], r, out=", "* scale[now], 0 * r, out=", LOSS),
    Mutant("what was right to copy", COPY_LOSS, "c[..., None], value=-1)", "c[..., None], value=0)", LOSS),
    Mutant("pair hash's token itself", MODEL, "1_000_003 + tokens * 7_919", "1_000_003 + tokens", EQUATIONS),
    Mutant("pair hash's token before", MODEL, "(previous * 1_000_003", "(previous * 0", EQUATIONS),
    Mutant("pair across a cut", MODEL, "pair_rows(tokens, before, self", "pair_rows(tokens, None, self", DECODING),
    Mutant(
        "head's split",
        MODEL,
        "part.unflatten(-1, (self.num_heads, -1)).transpose(1, 2)",
        "part.unflatten(-1, (-1, self.num_heads)).movedim(-1, 1)",
        EQUATIONS,
    ),
    Mutant("heads' join", MODEL, ".transpose(1, 2).flatten(2), c", ".permute(0, 2, 3, 1).flatten(2), c", EQUATIONS),
    Mutant("scores' scale", ATTENTION, "1 / math.sqrt(key_dim)", "1 / math.sqrt(value_dim)", EQUATIONS),
    Mutant("mask beside a cache", ATTENTION, ".tril(S - T)", ".tril(S)", EQUATIONS),
    Mutant("the last block attends", MODEL, "i == config.num_layers - 1)", "i == 0)", NAMES),
    Mutant("tied head", MODEL, "self.lm_head.weight = self.embeddings.weight", "pass", NAMES),
    Mutant("end of dropout", MODEL, "self.dropout, self.training)", "self.dropout, True)", DECODING),
    Mutant(
        "decay mask: vectors have none",
        OPTIMIZER,
        'if p.ndim != 2], "weight_decay": 0.0',
        'if p.ndim != 2], "weight_decay": config.weight_decay',
        TRAINING,
    ),
    Mutant(
        "decay of embedding and head",
        OPTIMIZER,
        'if p.ndim == 2], "weight_decay": config.weight_decay',
        'if p.ndim == 2], "weight_decay": 0.0',
        TRAINING,
    ),
    Mutant("decay of Muon's matrices", OPTIMIZER, 'if group["weight_decay"]:', "if False:", TRAINING),
    Mutant("embeddings are not Muon's", OPTIMIZER, "p.ndim == 2 and not _is_vocabulary(name)", "p.ndim == 2", TRAINING),
    Mutant("Nesterov's step ahead", OPTIMIZER, 'p.grad.add(momentum, alpha=group["momentum"])', "momentum", TRAINING),
    Mutant("scale of tall matrices", OPTIMIZER, "max(1.0, rows / columns) ** 0.5", "1.0", TRAINING),
    Mutant("Newton-Schulz coefficient", OPTIMIZER, "alpha=2.0315", "alpha=2.0", TRAINING),
    Mutant("clip of the gradient", STEP, "clip or math.inf)", "math.inf)", TRAINING),
    Mutant("warm-up's first step", LOOP, "optimizer_config, self.progress.step,", "optimizer_config, 1,", TRAINING),
    Mutant("state carried to the next batch", GRADIENTS, "None if batch.restart or", "None if True or", TRAINING),
    Mutant("window of the carried state", GRADIENTS, "recent(self.config.window)", "recent(10**9)", TRAINING),
    Mutant("first weights near the identity", MODEL, "KEPT = 0.9 ", "KEPT = 0.8 ", CURVE),
    Mutant("text begins after </s>", REQUESTS, "return [tokenizer.eos_id, *tok", "return [*tok", STORY),
    Mutant("page named by all ids before it", PREFIXES, "(before + np.array(ids", '(b"" + np.array(ids', ENGINE),
    Mutant("memory of a slot's last text", TEXTS, "self.hidden[slot], self.len", "_, self.len", ENGINE),
    Mutant("memory kept where a page ends", TEXTS, "self.hidden[slot].copy()", "self.hidden[slot]", ENGINE),
    Mutant("logits of the text's own copies", "decode/native/head.h", "place[begin + i] + 1", "place[i] + 1", SCORED),
    Mutant("attention alone keeps nothing", MODEL, "hidden = x[..., :0]", "hidden = x", ALONE),
    Mutant("answers out of sight", "tokens/batches.py", "return ids[:, ::2].", "return ids[:, 1::2].", LABELS),
    Mutant("the other half of a swap", TASKS, "held[rows, one], held[rows, other] =", "held[rows, one], _ =", ANSWERS),
    Mutant("half a point for a tie", "minimal_pairs.py", "0.5 if good == bad", "1.0 if good == bad", COIN),
]  # fmt: skip


@dataclass(frozen=True)
class Verdict:
    """passed and failed: how many tests. assertion: whether the first failure was one. why: its first line."""

    passed: int
    failed: int
    assertion: bool
    why: str
    seconds: float

    @property
    def found(self) -> bool:
        return self.failed > 0 and self.assertion


def lie(text: str, mutant: Mutant) -> str:
    """The file's text with the mutant in it; ValueError where the old text is not there exactly once."""
    if (count := text.count(mutant.old)) != 1:
        raise ValueError(f"{mutant.name}: {mutant.old!r} is {count} times in src/rhapsode/{mutant.file}, not once")
    return text.replace(mutant.old, mutant.new)


def judge(mutant: Mutant | None, tests: Iterable[str]) -> Verdict:
    """Runs the tests on a copy of the source with the mutant in it, or on an unchanged copy, in another process."""
    started = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / "rhapsode"
        shutil.copytree(SOURCE, copy)  # with the compiled files, which know the source by its time
        if mutant is not None:
            file = copy / mutant.file
            file.write_text(lie(file.read_text(encoding="utf-8"), mutant), encoding="utf-8")
        # A server that has imported what is slow (optimisers import _dynamo) and forks: 30 times three seconds saved.
        slow = ("torch._dynamo", "pytest", "hypothesis", "tokenizers", "safetensors.torch", "rich.console")
        context = context_with(*slow)
        ours, theirs = context.Pipe(duplex=False)
        process = context.Process(target=_test, args=(folder, [str(TESTS / test) for test in tests], theirs))
        process.start()
        theirs.close()
        try:
            told = ours.recv() if ours.poll(SECONDS) else (0, 1, False, f"stuck for {SECONDS} s")
        except EOFError:
            told = (0, 1, False, "the process ended without an answer")
        process.kill()
        process.join()
    return Verdict(*told, seconds=time.monotonic() - started)


class _Recorder:
    """What a run of pytest found, for pytest's own hooks."""

    def __init__(self) -> None:
        self.passed = self.failed = 0
        self.assertion, self.why = False, ""

    def pytest_runtest_logreport(self, report: Any) -> None:
        self.passed += report.when == "call" and report.passed
        self.failed += report.failed

    def pytest_exception_interact(self, call: Any) -> None:
        if not self.why:
            error = call.excinfo
            self.assertion = error.type is AssertionError
            lines = [line for line in str(error.value).splitlines() if line.strip()]
            self.why = f"{error.typename}: {' '.join(lines[:4])}"


def _test(source: str, tests: list[str], answer: Any) -> None:
    """In the other process: runs the tests up to the first that fails, and sends what came of it."""
    with open(os.devnull, "w") as nowhere:
        os.dup2(nowhere.fileno(), 1)
        os.dup2(nowhere.fileno(), 2)
    sys.path.insert(0, source)
    sys.dont_write_bytecode = True
    os.environ["PYTEST_DISABLE_PLUGIN_AUTOLOAD"] = "1"  # their imports take longer than most of these tests
    for name in ("CI", "BUILD_NUMBER"):  # where pytest compares two long lists for minutes, to show how they differ
        os.environ.pop(name, None)
    import pytest
    import torch

    torch.set_num_threads(1)
    recorder = _Recorder()
    options = ["-q", "-x", "-p", "no:cacheprovider", "-o", "addopts=", "--basetemp", f"{source}/pytest"]
    code = pytest.main([*options, *tests], plugins=[recorder])
    import rhapsode

    assert Path(rhapsode.__file__).is_relative_to(source), "the tests ran on another copy"
    if code not in (pytest.ExitCode.OK, pytest.ExitCode.TESTS_FAILED):
        recorder.failed, recorder.assertion, recorder.why = 1, False, recorder.why or f"pytest ended with {code!r}"
    answer.send((recorder.passed, recorder.failed, recorder.assertion, recorder.why))


def verdicts(mutants: Iterable[Mutant]) -> Iterator[tuple[Mutant | None, Verdict]]:
    """First (None, what the mutants' tests say of the unchanged source), then each mutant with its own."""
    mutants = list(mutants)
    stop_server()  # one that others began has imported the package as it is, without a mutant
    yield None, judge(None, dict.fromkeys(mutant.test for mutant in mutants))
    for mutant in mutants:
        yield mutant, judge(mutant, [mutant.test])


def main(words: list[str]) -> int:
    """Prints the table; 1 where a mutant was not found or the tests fail on the unchanged source.

    Raises ValueError or OSError where a mutant's text or file is not there.
    """
    chosen = [mutant for mutant in MUTANTS if not words or any(word in mutant.name for word in words)]
    if not chosen:
        print(f"no mutant has {' or '.join(words)} in its name", file=sys.stderr)
        return 2
    wrong = 0
    for mutant in chosen:
        lie((SOURCE / mutant.file).read_text(encoding="utf-8"), mutant)  # one that is gone is told before any is run
    for mutant, verdict in verdicts(chosen):
        good = verdict.failed == 0 and verdict.passed > 0 if mutant is None else verdict.found
        wrong += not good
        name, test = (mutant.name, mutant.test.partition("::")[2]) if mutant else ("nothing is changed", "all below")
        outcome = ("passes" if mutant is None else "found") if good else ("FAILS" if mutant is None else "NOT FOUND")
        print(f"{outcome:9}  {name:34}  {verdict.seconds:4.1f} s  {test}", flush=True)
        if not good and verdict.why:
            print(f"           {verdict.why}", flush=True)
    return int(wrong > 0)


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except (ValueError, OSError) as error:
        print(f"error: {error}; point the mutant at where its code is now, in {__file__}", file=sys.stderr)
        sys.exit(2)
