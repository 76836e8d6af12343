"""The GPU: does a step as one launch compute what it computes piece by piece, and how fast is all that it is for?

    python benchmarks/gpu.py                     needs a CUDA GPU and five minutes; the last line is one JSON object
    python benchmarks/gpu.py --data shared/...   the course's and the presets' runs on other text than storyworld
    python benchmarks/gpu.py --cpu               tiny sizes, nothing captured: shows that the script works

First the numbers: rivals have our loss and gradients, a captured run ends where an eager one does, and one that is
stopped and resumed ends there too. Then times, in this order, as long as there are minutes left: a full training step
(loss, backward, clipping, Adam; vocabulary 1,024) of each row beside `nn.RNN`, both with and without a CUDA graph, in
float32 and TF32; the course's large model for 250,000 sequences; `coffee`; eight seeds together; decoding.
"""

import argparse
import itertools
import json
import math
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from gpu_sizes import Row, Setup, setup
from race import check_agreement, contenders
from report import about
from rivals import PyTorchRNN, Stepwise
from torch import Tensor, nn

from rhapsode.bench import Workload, batches
from rhapsode.decode import Engine, GenerationRequest, SampleConfig
from rhapsode.kernels.forms import form
from rhapsode.machine import device_name, on_own_stream, synchronize
from rhapsode.model import LanguageModel, PlainModel, build_model
from rhapsode.progress import say
from rhapsode.recipe import OptimizerConfig, Recipe
from rhapsode.recipe.changes import Sections, merge
from rhapsode.run import Run
from rhapsode.tokens import Batch, BatchConfig
from rhapsode.training import Event, Step, train_run
from rhapsode.training.data import DataRequest, TrainingData, open_data
from rhapsode.training.graph import GraphStep
from rhapsode.training.loop import Training
from rhapsode.training.optimizer import Muon
from rhapsode.training.precision import products
from rhapsode.training.start import create_run
from rhapsode.training.step import TrainingStep
from rhapsode.training.together import Trainee, train_together

BURSTS, BURST_SECONDS, FIRST_STEPS = 5, 0.12, 5
ADAM = OptimizerConfig(optimizer="adam", learning_rate=1e-3, beta2=0.999, warmup_steps=0, decay="constant")
SAME_LOSS = 1e-3  # relative, between a captured and an eager run of a few dozen steps
STOPPED_AT = 17
TOGETHER = 8
BARS = {  # what the figure is to be: (least, most)
    "step of nn.RNN under a graph": (0.0, 1.0),
    "course's large model, seconds": (0.0, 8.0),
    "coffee, tokens/s": (1e6, math.inf),
    "eight seeds together, times one": (3.0, math.inf),
}


# -- numbers ---------------------------------------------------------------------------------------------------------


def check_numbers(how: Setup, data: TrainingData, folder: Path) -> dict[str, float]:
    """Raises ValueError where a rival, a form, a capture or a resumed run computes something else."""
    found: dict[str, float] = {}
    with exactly(how):
        few = Workload("", how.rows[0].workload.config, 4, min(64, how.rows[0].length))
        tokens, targets = (part.to(how.device) for part in batches(few)[0])
        models = {name: model.to(how.device) for name, model in contenders(few.config).items()}
        found["rivals"] = check_agreement(models, tokens, targets)
        losses = {}
        for kind in ("plain", "fast"):
            with form(kind):
                losses[kind] = build_model(few.config, 0).to(how.device).loss(tokens, targets)[0].item()
        found["forms"] = abs(losses["fast"] / losses["plain"] - 1)
    for name, sections in {"course": how.seeds, "coffee": how.coffee}.items():
        steps = 40 * sections["batch"]["batch_size"]
        sections = merge(sections, {"train": {"sequences": steps}, "batch": {"carry_state": name == "coffee"}})
        runs = [begin(folder / f"{name}-{kind}", sections, data) for kind in ("eager", "captured", "resumed")]
        train_run(runs[0], data.train, data.valid, how.device, show=False)
        captured(runs[1], data, how)
        stopped(runs[2], data, how)
        captured(Run.open(runs[2].path), data, how)
        ends = [final_loss(run) for run in runs]
        found[f"{name}: captured"] = abs(ends[1] / ends[0] - 1)
        found[f"{name}: resumed, of captured"] = abs(ends[2] / ends[1] - 1)
        say(f"{name}: resumed {'exactly' if ends[1] == ends[2] else 'NOT exactly'}: {ends[2]!r} after {ends[1]!r}")
    for what, difference in found.items():
        if not difference < SAME_LOSS:
            raise ValueError(f"{what}: differs by {difference:.1e}; no time is taken of wrong numbers")
        say(f"{what}: differs by {difference:.0e}")
    return found


@contextmanager
def exactly(how: Setup, precision: str = "float32") -> Iterator[None]:
    """Within the block products are in this precision, cuDNN's too, which would else be TF32 unasked."""
    before = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = precision == "tf32"
    try:
        with products(precision):
            yield
    finally:
        torch.backends.cudnn.allow_tf32 = before


def begin(path: Path, sections: Sections, data: TrainingData) -> Run:
    """A new run on the data."""
    return create_run(path, Recipe.from_sections(sections, data.tokenizer.vocab_size), data.tokenizer, {})


def captured(run: Run, data: TrainingData, how: Setup) -> float:
    """Trains a run with captured steps; seconds of training. ValueError where the capture was not used."""
    outcome = train_run(run, data.train, data.valid, how.device, show=False, capture=how.capture)
    for line in run.log_path.read_text(encoding="utf-8").splitlines():
        if "captured" in line:
            raise ValueError(f"{run.path.name}: {line}")
    return outcome.progress.seconds


def stopped(run: Run, data: TrainingData, how: Setup) -> None:
    """Trains a run for STOPPED_AT steps, and stops as after Ctrl-C."""
    asked = threading.Event()

    def heard(event: Event) -> None:
        if isinstance(event, Step) and event.step == STOPPED_AT:
            asked.set()

    with run.lock():
        Training(run, data.train, data.valid, how.device, None, asked, False, heard, capture=how.capture).go()


def final_loss(run: Run) -> float:
    return float(next(entry for entry in reversed(run.metrics()) if entry["event"] == "valid")["valid_loss"])


# -- steps -----------------------------------------------------------------------------------------------------------


def time_rows(how: Setup) -> list[dict[str, Any]]:
    """Milliseconds of a training step, by row and contender."""
    found: list[dict[str, Any]] = []
    for row in how.rows:
        for precision in how.precisions:
            if not how.left():
                return found
            entry: dict[str, Any] = {"row": row.workload.name, "precision": precision}
            with exactly(how, precision):
                for name, step in contending(row, precision, how).items():
                    entry[name] = milliseconds(step, how.device)
            entry["of nn.RNN, graph"] = entry["ours, graph"] / entry["nn.RNN, graph"]
            found.append(entry)
            say(", ".join(f"{key} {value:.3g}" if isinstance(value, float) else value for key, value in entry.items()))
    return found


def contending(row: Row, precision: str, how: Setup) -> dict[str, Callable[[], None]]:
    """What makes a step, by contender, each on a model of its own."""
    workload = row.workload
    config = BatchConfig(row.length, row.batch)
    whole = [Batch(*pair, True, pair[1].numel()) for pair in batches(workload)]

    def ours(step: TrainingStep | GraphStep) -> Callable[[], None]:
        turn = itertools.cycle(whole)
        return lambda: step.take(next(turn), 1.0)

    def model() -> PlainModel:
        made = build_model(workload.config, seed=0).to(how.device)
        assert isinstance(made, PlainModel)
        return made

    def told(line: str) -> None:
        raise ValueError(f"{workload.name}: {line}")

    made: dict[str, Callable[[], None]] = {
        "ours": ours(TrainingStep(model(), ADAM, config, precision=precision)),
        "ours, graph": ours(GraphStep(model(), ADAM, config, how.capture, told, precision)),
    }
    tokens, targets = (part.to(how.device) for part in batches(workload)[0])
    made["nn.RNN"] = rival(PyTorchRNN(model()).to(how.device), tokens, targets)
    made["nn.RNN, graph"] = graph_of(rival(PyTorchRNN(model()).to(how.device), tokens, targets), how)
    if row.stepwise and precision == "float32":
        made["stepwise"] = rival(Stepwise(model()).to(how.device), tokens, targets)
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


def graph_of(step: Callable[[], None], how: Setup) -> Callable[[], None]:
    """A step of a rival as one launch, after some that make its moments and choose its kernels."""
    for _ in range(3):
        on_own_stream(torch.device(how.device), step)
    return how.capture(step)


def milliseconds(step: Callable[[], None], device: str) -> float:
    """The median over bursts of steps, the GPU waited for at the end of each."""
    for _ in range(FIRST_STEPS):
        step()
    synchronize(device)
    began = time.monotonic()
    step()
    synchronize(device)
    count = max(1, int(BURST_SECONDS / max(1e-6, time.monotonic() - began)))
    times = []
    for _ in range(BURSTS):
        began = time.monotonic()
        for _ in range(count):
            step()
        synchronize(device)
        times.append((time.monotonic() - began) / count)
    return 1e3 * statistics.median(times)


def time_muon(how: Setup) -> dict[str, float]:
    """Milliseconds of an update of coffee's matrices by our Muon and by PyTorch's, which iterates in bfloat16."""
    model = build_model(Recipe.from_sections(how.coffee, 1024).model, 0).to(how.device)
    matrices: list[Tensor] = [p for name, p in model.named_parameters() if p.ndim == 2 and "embeddings" not in name]
    for p in matrices:
        p.grad = torch.randn_like(p)
    contending = {"ours": Muon(matrices, 0.02, 0.95, 0.0), "PyTorch's": torch.optim.Muon(matrices, 0.02)}
    return {name: milliseconds(optimizer.step, how.device) for name, optimizer in contending.items()}


# -- whole runs ------------------------------------------------------------------------------------------------------


def time_runs(how: Setup, data: TrainingData, folder: Path) -> dict[str, Any]:
    """The course's large model, coffee, eight seeds together, by the package's own training loop."""
    found: dict[str, Any] = {}
    for precision in (*how.precisions, "bfloat16"):
        train = {"train": {"precision": precision}}
        if how.left() and precision != "bfloat16":
            run = begin(folder / f"large-{precision}", merge(how.large, train), data)
            found[f"large, {precision}"] = {"seconds": captured(run, data, how), "valid_loss": final_loss(run)}
        if how.left():
            run = begin(folder / f"coffee-{precision}", merge(how.coffee, train), data)
            seconds, last = captured(run, data, how), run.metrics()[-1]
            bits = last["bits_per_byte"]
            found[f"coffee, {precision}"] = {"tokens/s": last["tokens"] / seconds, "bits_per_byte": bits}
    if how.left():
        one = begin(folder / "one", how.seeds, data)
        alone = captured(one, data, how)
        runs = [begin(folder / f"s{k}", merge(how.seeds, {"train": {"seed": k}}), data) for k in range(TOGETHER)]
        outcomes = train_together([Trainee(run, data.train, data.valid) for run in runs], how.device, how.capture)
        failed = [outcome for outcome in outcomes if isinstance(outcome, Exception)]
        if failed:
            raise failed[0]
        difference = abs(final_loss(runs[0]) / final_loss(one) - 1)
        if not difference < 10 * SAME_LOSS:
            raise ValueError(f"a seed among {TOGETHER} ends {difference:.1e} from where it ends alone")
        together = max(outcome.progress.seconds for outcome in outcomes if not isinstance(outcome, Exception))
        found["eight seeds"] = {"times one": TOGETHER * alone / together, "seconds": together, "alone": alone}
    for name, entry in found.items():
        say(f"{name}: " + ", ".join(f"{key} {value:,.3f}" for key, value in entry.items()))
    return found


def time_decoding(how: Setup, data: TrainingData) -> list[dict[str, Any]]:
    """Tokens per second that are written by a model of coffee's shape, on the GPU and by the CPU's own kernel."""
    network: LanguageModel = build_model(Recipe.from_sections(how.coffee, data.tokenizer.vocab_size).model, seed=0)
    endless = {data.tokenizer.eos_id: -100.0}
    found: list[dict[str, Any]] = []
    for texts in how.texts:
        entry: dict[str, Any] = {"texts": texts}
        for name, capture in (("graph", how.capture), ("CPU", None)):
            if not how.left():
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


def verdicts(steps: list[dict[str, Any]], runs: dict[str, Any]) -> dict[str, Any]:
    """Each bar: the figures that there are, and whether all of them hold."""
    figures: dict[str, list[float]] = {
        "step of nn.RNN under a graph": [entry["of nn.RNN, graph"] for entry in steps],
        "course's large model, seconds": [v["seconds"] for k, v in runs.items() if k.startswith("large")][-1:],
        "coffee, tokens/s": [v["tokens/s"] for k, v in runs.items() if k.startswith("coffee")],
        "eight seeds together, times one": [v["times one"] for k, v in runs.items() if k == "eight seeds"],
    }
    figures["coffee, tokens/s"] = [max(figures["coffee, tokens/s"], default=0.0)]
    return {
        name: {"figures": values, "held": bool(values) and all(BARS[name][0] <= v <= BARS[name][1] for v in values)}
        for name, values in figures.items()
    }


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
    with tempfile.TemporaryDirectory(prefix="rhapsode-gpu-") as folder:
        numbers = check_numbers(how, data, Path(folder))
        steps, muon = time_rows(how), time_muon(how)
        runs = time_runs(how, data, Path(folder))
    decoding = time_decoding(how, data)
    result = {
        "format_version": 1,
        **about(),
        "device": device_name(how.device),
        "torch": torch.__version__,
        "differences": numbers,
        "steps_ms": steps,
        "muon_ms": muon,
        "runs": runs,
        "decoding_tokens_per_second": decoding,
        "bars": verdicts(steps, runs),
        "seconds": time.monotonic() - began,
    }
    if given.out is not None:
        given.out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(result))
    return 0


if __name__ == "__main__":
    sys.exit(main())
