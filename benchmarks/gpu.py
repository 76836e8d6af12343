"""The GPU: does a step as one launch compute what it computes piece by piece, and how fast is all that it is for?

    python benchmarks/gpu.py                     needs a CUDA GPU and five minutes; the last line is one JSON object
    python benchmarks/gpu.py --data shared/...   the course's and the presets' runs on other text than storyworld
    python benchmarks/gpu.py --cpu               tiny sizes, nothing captured: shows that the script works

First the numbers: rivals have our loss and gradients, a captured run ends where an eager one does, and one that is
stopped and resumed ends there too; where they are wrong, no time is taken. Then times, in this order, as long as there
are minutes left: a full training step (loss, backward, clipping, Adam; vocabulary 1,024) of each row beside `nn.RNN`,
both with and without a CUDA graph, in float32 and TF32; the course's large model for 250,000 sequences; `coffee`; eight
seeds together; decoding; the recurrences alone, which `ON_CHIP` is made of; Muon. What fails is written down, the rest
is measured, and the JSON object is printed in any case. Exit code 0: nothing failed; 1: something did.
"""

import argparse
import itertools
import json
import math
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from gpu_loops import check_and_time_loops
from gpu_sizes import Row, Setup, setup
from gpu_timing import exactly, graph_of, milliseconds
from race import check_agreement, contenders
from report import about
from rivals import PyTorchRNN, Stepwise
from torch import Tensor, nn

from rhapsode.bench import Workload, batches
from rhapsode.data import DataRequest, TrainingData, open_data
from rhapsode.decode import Engine, GenerationRequest, SampleConfig
from rhapsode.kernels.forms import form
from rhapsode.machine import device_name
from rhapsode.model import LanguageModel, PlainModel, build_model
from rhapsode.progress import say
from rhapsode.recipe import OptimizerConfig, Recipe
from rhapsode.recipe.changes import Sections, merge
from rhapsode.run import Run
from rhapsode.tokens import Batch, BatchConfig
from rhapsode.training import Event, Step, train_run
from rhapsode.training.graph import GraphStep
from rhapsode.training.loop import Training
from rhapsode.training.optimizer import Muon
from rhapsode.training.start import create_run
from rhapsode.training.step import TrainingStep
from rhapsode.training.together import Trainee, train_together

ADAM = OptimizerConfig(optimizer="adam", learning_rate=1e-3, beta2=0.999, warmup_steps=0, decay="constant")
SAME_LOSS = 1e-3  # relative, between a captured and an eager run of a few dozen steps
FEW = 40  # steps, in which roundings do not grow to SAME_LOSS
STOPPED_AT = 17
TOGETHER = 8
BARS = {  # what the figure is to be: at least, or at most
    "step of nn.RNN under a graph": {"at_most": 1.0},
    "course's large model, seconds": {"at_most": 8.0},
    "coffee, tokens/s": {"at_least": 1e6},
    "eight seeds together, times one": {"at_least": 3.0},
}
# Seconds that a part takes at most: it is begun only where they are left.
ROW, RUN, SEEDS, TEXTS, MUON = 12, 30, 30, 15, 5


# -- numbers ---------------------------------------------------------------------------------------------------------


def check_numbers(how: Setup, data: TrainingData, folder: Path, found: dict[str, float]) -> None:
    """What differs how much, into `found`; ValueError where a rival, a form or a captured run computes something else.

    A run that cannot be captured, or does not resume to the bit, is written down, and times are taken all the same.
    """
    with exactly():
        few = Workload("", how.rows[0].workload.config, 4, min(64, how.rows[0].length))
        tokens, targets = (part.to(how.device) for part in batches(few)[0])
        models = {name: model.to(how.device) for name, model in contenders(few.config).items()}
        found["rivals"] = check_agreement(models, tokens, targets)
        model = build_model(few.config, 0).to(how.device)
        losses = [model.loss(tokens, targets)[0].item()]  # in the form that this card runs
        for kind in ("plain", "fast"):
            with form(kind):
                losses.append(model.loss(tokens, targets)[0].item())
        found["forms"] = max(losses) / min(losses) - 1
    for name, sections in {"course": how.seeds, "coffee": how.coffee}.items():
        with how.trying(f"numbers of {name}"):
            compare_runs(name, sections, how, data, folder, found)
    for what, difference in found.items():
        if not difference < SAME_LOSS:
            raise ValueError(f"{what}: differs by {difference:.1e}; no time is taken of wrong numbers")
        say(f"{what}: differs by {difference:.0e}")


def compare_runs(
    name: str, sections: Sections, how: Setup, data: TrainingData, folder: Path, found: dict[str, float]
) -> None:
    """FEW steps: eager; captured; captured, stopped and resumed. ValueError where the last is not the second, bit by
    bit."""
    sequences = FEW * sections["batch"]["batch_size"]
    sections = merge(sections, {"train": {"sequences": sequences}, "batch": {"carry_state": name == "coffee"}})
    runs = [begin(folder / f"{name}-{kind}", sections, data) for kind in ("eager", "captured", "resumed")]
    train_run(runs[0], data.train, data.valid, how.device, show=False)
    captured(runs[1], data, how)
    ends = [final(run) for run in runs[:2]]
    found[f"{name}: captured"] = abs(ends[1] / ends[0] - 1)
    stopped(runs[2], data, how)
    captured(Run.open(runs[2].path), data, how)
    resumed = final(runs[2])
    found[f"{name}: resumed, of captured"] = abs(resumed / ends[1] - 1)
    if resumed != ends[1]:
        raise ValueError(f"a resumed run ends at {resumed!r}, the run itself at {ends[1]!r}")
    say(f"{name}: resumed to the bit")


def begin(path: Path, sections: Sections, data: TrainingData) -> Run:
    """A new run on the data."""
    return create_run(path, Recipe.from_sections(sections, data.tokenizer.vocab_size), data.tokenizer, {})


def captured(run: Run, data: TrainingData, how: Setup) -> float:
    """Trains a run with captured steps; seconds of training. ValueError where the capture was not used."""
    outcome = train_run(run, data.train, data.valid, how.device, show=False, capture=how.capture)
    check_captured(run)
    return outcome.progress.seconds


def check_captured(run: Run) -> None:
    """ValueError with what the run's log says where its steps were not captured."""
    for line in run.log_path.read_text(encoding="utf-8").splitlines():
        if "captured" in line:
            raise ValueError(f"{run.path.name}: {line}")


def stopped(run: Run, data: TrainingData, how: Setup) -> None:
    """Trains a run for STOPPED_AT steps, and stops as after Ctrl-C."""
    asked = threading.Event()

    def heard(event: Event) -> None:
        if isinstance(event, Step) and event.step == STOPPED_AT:
            asked.set()

    with run.lock():
        Training(run, data.train, data.valid, how.device, None, asked, False, heard, capture=how.capture).go()


def final(run: Run, what: str = "valid_loss") -> float:
    """What the last validation found."""
    return float(next(entry for entry in reversed(run.metrics()) if entry["event"] == "valid")[what])


# -- steps -----------------------------------------------------------------------------------------------------------


def time_rows(how: Setup) -> list[dict[str, Any]]:
    """Milliseconds of a training step, by row and contender."""
    found: list[dict[str, Any]] = []
    for row in how.rows:
        for precision in how.precisions:
            if not how.left(ROW):
                return found
            entry: dict[str, Any] = {"row": row.workload.name, "precision": precision}
            for name, step in contending(row, precision, how).items():
                with how.trying(f"{row.workload.name}, {precision}, {name}"), exactly(precision):
                    entry[name] = milliseconds(step(), how.device)
            if {"ours, graph", "nn.RNN, graph"} <= entry.keys():
                entry["of nn.RNN, graph"] = entry["ours, graph"] / entry["nn.RNN, graph"]
            found.append(entry)
            say(", ".join(f"{key} {value:.3g}" if isinstance(value, float) else value for key, value in entry.items()))
    return found


def contending(row: Row, precision: str, how: Setup) -> dict[str, Callable[[], Callable[[], None]]]:
    """What gives a step, by contender, each on a model of its own, which is there as long as the step is."""
    workload = row.workload
    config = BatchConfig(row.length, row.batch)
    whole = [Batch(*pair, True, pair[1].numel()) for pair in batches(workload)]

    def model() -> PlainModel:
        made = build_model(workload.config, seed=0).to(how.device)
        assert isinstance(made, PlainModel)
        return made

    def told(line: str) -> None:
        raise ValueError(line)

    def ours(captured: bool) -> Callable[[], None]:
        step: TrainingStep | GraphStep = TrainingStep(model(), ADAM, config, precision=precision)
        if captured:
            step = GraphStep(model(), ADAM, config, how.capture, told, precision)
        turn = itertools.cycle(whole)
        return lambda: step.take(next(turn), 1.0)

    def theirs(kind: Any) -> Callable[[], None]:
        tokens, targets = (part.to(how.device) for part in batches(workload)[0])
        return rival(kind(model()).to(how.device), tokens, targets)

    made: dict[str, Callable[[], Callable[[], None]]] = {
        "ours": lambda: ours(False),
        "ours, graph": lambda: ours(True),
        "nn.RNN": lambda: theirs(PyTorchRNN),
        "nn.RNN, graph": lambda: graph_of(theirs(PyTorchRNN), how),
    }
    if row.stepwise and precision == "float32":
        made["stepwise"] = lambda: theirs(Stepwise)
    return made


def rival(model: Any, tokens: Tensor, targets: Tensor) -> Callable[[], None]:
    """A rival's step: loss, backward, clipping, fused Adam, with nothing that waits for the GPU."""
    parameters = list(model.parameters())
    adam = torch.optim.Adam(parameters, 1e-3, fused=True, capturable=True)

    def step() -> None:
        adam.zero_grad(set_to_none=True)
        model.loss(tokens, targets).backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        adam.step()

    return step


def time_muon(how: Setup) -> dict[str, float]:
    """Milliseconds of an update of coffee's matrices, in a graph, by our Muon and by PyTorch's, which iterates in
    bfloat16; ours in float32 and in TF32."""
    found: dict[str, float] = {}
    for name in ("ours, float32", "ours, tf32", "PyTorch's"):
        if not how.left(MUON):
            return found
        with (
            how.trying(f"Muon, {name}"),
            exactly("tf32" if name.endswith("tf32") and how.device == "cuda" else "float32"),
        ):
            model = build_model(Recipe.from_sections(how.coffee, 1024).model, 0).to(how.device)
            matrices: list[Tensor] = [p for n, p in model.named_parameters() if p.ndim == 2 and "embeddings" not in n]
            for p in matrices:
                p.grad = torch.randn_like(p)
            muon = Muon(matrices, 0.02, 0.95, 0.0) if name.startswith("ours") else torch.optim.Muon(matrices, 0.02)
            found[name] = milliseconds(graph_of(muon.step, how), how.device)
    return found


# -- whole runs ------------------------------------------------------------------------------------------------------


def time_runs(how: Setup, data: TrainingData, folder: Path) -> dict[str, Any]:
    """The course's large model, coffee, eight seeds together, by the package's own training loop."""
    found: dict[str, Any] = {}
    for precision in (*how.precisions, "bfloat16"):
        train = {"train": {"precision": precision}}
        if how.left(RUN) and precision != "bfloat16":
            with how.trying(name := f"large, {precision}"):
                run = begin(folder / f"large-{precision}", merge(how.large, train), data)
                found[name] = {"seconds": captured(run, data, how), "bits_per_byte": final(run, "bits_per_byte")}
        if how.left(RUN):
            with how.trying(name := f"coffee, {precision}"):
                run = begin(folder / f"coffee-{precision}", merge(how.coffee, train), data)
                seconds, bits = captured(run, data, how), final(run, "bits_per_byte")
                found[name] = {"tokens/s": run.metrics()[-1]["tokens"] / seconds, "bits_per_byte": bits}
    if how.left(SEEDS):
        with how.trying("eight seeds"):
            found["eight seeds"] = side_by_side(how, data, folder)
    for name, entry in found.items():
        say(f"{name}: " + ", ".join(f"{key} {value:,.3f}" for key, value in entry.items()))
    return found


def side_by_side(how: Setup, data: TrainingData, folder: Path) -> dict[str, float]:
    """One seed alone, and TOGETHER of them; ValueError where after FEW steps one is elsewhere than alone.

    Later, roundings have grown: `ends apart` says how far the whole runs end from each other, relative to the loss.
    """
    sections = merge(how.seeds, {"train": {"sequences": FEW * how.seeds["batch"]["batch_size"]}})
    found = {"few steps apart": together(sections, how, data, folder / "few")["ends apart"]}
    if not found["few steps apart"] < SAME_LOSS:
        raise ValueError(f"a seed among {TOGETHER} is {found['few steps apart']:.1e} from where it is alone")
    return found | together(how.seeds, how, data, folder / "whole")


def together(sections: Sections, how: Setup, data: TrainingData, folder: Path) -> dict[str, float]:
    """One seed alone and TOGETHER of them, ValueError where one fails or was not captured."""
    folder.mkdir()
    one = begin(folder / "one", sections, data)
    alone = captured(one, data, how)
    runs = [begin(folder / f"s{k}", merge(sections, {"train": {"seed": k}}), data) for k in range(TOGETHER)]
    outcomes = train_together([Trainee(run, data.train, data.valid) for run in runs], how.device, how.capture)
    for run, outcome in zip(runs, outcomes, strict=True):
        if isinstance(outcome, Exception):
            raise outcome
        check_captured(run)
    seconds = max(outcome.progress.seconds for outcome in outcomes if not isinstance(outcome, Exception))
    apart = abs(final(runs[0]) / final(one) - 1)
    return {"times one": TOGETHER * alone / seconds, "seconds": seconds, "alone": alone, "ends apart": apart}


def time_decoding(how: Setup, data: TrainingData) -> list[dict[str, Any]]:
    """Tokens per second that are written by a model of coffee's shape, on the GPU and by the CPU's own kernel."""
    network: LanguageModel = build_model(Recipe.from_sections(how.coffee, data.tokenizer.vocab_size).model, seed=0)
    endless = {data.tokenizer.eos_id: -100.0}
    found: list[dict[str, Any]] = []
    for texts in how.texts:
        entry: dict[str, Any] = {"texts": texts}
        for name, capture in (("graph", how.capture), ("CPU", None)):
            if not how.left(TEXTS):
                return found
            placed = network.to(how.device if capture else "cpu").eval()
            engine = Engine(placed, data.tokenizer, capture=capture)
            for count in (16, how.tokens):  # the first of them warms up, and captures
                for seed in range(texts):
                    config = SampleConfig(count, temperature=0.8, seed=seed, logit_bias=endless)
                    engine.submit(GenerationRequest([data.tokenizer.eos_id], config))
                began, before = time.monotonic(), engine.counters.written_tokens
                while engine.busy:
                    engine.step()
                entry[name] = (engine.counters.written_tokens - before) / (time.monotonic() - began)
        found.append(entry)
        say(", ".join(f"{key} {value:,.0f}" for key, value in entry.items()))
    return found


def verdicts(how: Setup, steps: list[dict[str, Any]], runs: dict[str, Any]) -> dict[str, Any]:
    """Each bar with the figures that there are: `met` where all of them were measured and hold, `missed` where one does
    not, else `not measured`."""
    ratios = [entry["of nn.RNN, graph"] for entry in steps if "of nn.RNN, graph" in entry]
    large = [entry["seconds"] for name, entry in runs.items() if name.startswith("large")]
    coffee = [entry["tokens/s"] for name, entry in runs.items() if name.startswith("coffee")]
    figures = {
        "step of nn.RNN under a graph": (ratios, len(how.rows) * len(how.precisions)),
        "course's large model, seconds": ([min(large)] if large else [], 1),
        "coffee, tokens/s": ([max(coffee)] if coffee else [], 1),
        "eight seeds together, times one": ([runs["eight seeds"]["times one"]] if "eight seeds" in runs else [], 1),
    }
    found = {}
    for name, (values, count) in figures.items():
        least, most = BARS[name].get("at_least", -math.inf), BARS[name].get("at_most", math.inf)
        holds = all(least <= value <= most for value in values)
        verdict = "missed" if not holds else "met" if len(values) == count else "not measured"
        found[name] = {**BARS[name], "figures": values, "verdict": verdict}
        say(f"{name}: {verdict}")
    return found


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cpu", action="store_true", help="tiny sizes on the CPU: shows that the script works")
    parser.add_argument("--data", help="what the runs train on; by default storyworld")
    parser.add_argument("--out", type=Path, help="also write the JSON object to this file")
    given = parser.parse_args(arguments)
    if not given.cpu and not torch.cuda.is_available():
        print("benchmarks/gpu.py: PyTorch finds no CUDA GPU on this machine; --cpu tries the script", file=sys.stderr)
        return 2
    how, began = setup(given.cpu), time.monotonic()
    data = open_data(DataRequest((given.data or ("storyworld:300" if given.cpu else "storyworld:20000"),)), seed=0)
    numbers: dict[str, float] = {}
    steps: list[dict[str, Any]] = []
    runs: dict[str, Any] = {}
    decoding: list[dict[str, Any]] = []
    loops: list[dict[str, Any]] = []
    muon: dict[str, float] = {}
    with tempfile.TemporaryDirectory(prefix="rhapsode-gpu-") as folder:
        right = False
        with how.trying("numbers"):
            check_numbers(how, data, Path(folder), numbers)
            right = True
        if right:
            steps, runs = time_rows(how), time_runs(how, data, Path(folder))
            with how.trying("decoding"):
                decoding = time_decoding(how, data)
            loops, muon = check_and_time_loops(how), time_muon(how)
    result = {
        "format_version": 2,
        "date": time.strftime("%Y-%m-%d"),
        **about(),
        "device": device_name(how.device),
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "differences": numbers,
        "steps_ms": steps,
        "runs": runs,
        "decoding_tokens_per_second": decoding,
        "loops": loops,
        "muon_ms": muon,
        "bars": verdicts(how, steps, runs),
        "failed": how.failed,
        "seconds": time.monotonic() - began,
    }
    if given.out is not None:
        given.out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(result))
    return 1 if how.failed else 0


if __name__ == "__main__":
    sys.exit(main())
