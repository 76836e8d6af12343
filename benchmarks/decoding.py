"""How fast is text written, beside the loops one would write and beside the machine's own limit?

    python benchmarks/decoding.py                   three minutes; writes benchmarks/results/decoding.json
    python benchmarks/decoding.py --quick           one short round, printed only
    python benchmarks/decoding.py --before ""       without the commit of before

All contenders have the same weights and, at temperature 0, must write the same tokens. Then they write at temperature
0.8, sampling included, in turns, one thread each:

    engine      the decoding engine: texts, log-probabilities, filters ready; equal to the bit whatever else is written
    modules     the same where there is no compiler
    before      `sample.write` of commit 02642c6, from a temporary `git archive`
    course      `generate` of the course's model
    loop        a loop over the model's cached call, all streams in one batch, no text
    folded      the same with folded weights: what batches without bit-equality cost

The limit is the larger of two times: that of reading the weights and caches of a step once at the rate at which this
core adds up a buffer of that size, and that of its multiplications at the rate of a 1024 x 1024 product. Ratios are
made within a round, medians over the rounds reported. The last line printed is one JSON object.
"""

import argparse
import contextlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

import safetensors.torch
import torch
from neighbour import neighbour
from report import HERE, about, write
from rich.console import Console
from rich.table import Table

from rhapsode import storyworld
from rhapsode.inspection import flops_per_token
from rhapsode.model import ModelConfig, build_model
from rhapsode.progress import say
from rhapsode.recipe.presets import PRESETS
from rhapsode.tokenizer import train_tokenizer

BEFORE = "02642c6"
VOCAB = 1024
# `coffee` as commit 02642c6 has it.
COFFEE = {"kind": "stacked", "embed_dim": 224, "hidden_dim": 288, "key_dim": 64, "value_dim": 128}
CONFIGS = {
    "plain": ModelConfig(VOCAB, embed_dim=64, hidden_dim=128, key_dim=32, value_dim=32),
    "coffee-before": ModelConfig(VOCAB, **COFFEE, pair_embeddings=16384, feed_forward=2),  # type: ignore[arg-type]
    "coffee": ModelConfig(VOCAB, **PRESETS["coffee"]["model"]),
    "wide caches": ModelConfig(VOCAB, embed_dim=128, hidden_dim=128, key_dim=128, value_dim=128),
}
MANY_STREAMS, MANY_TOKENS, MOST_MEGABYTES = 512, 1024, 2000
CHECKED_TOKENS = 60


class Writing(NamedTuple):
    """What is written in a turn, by whom, and how many times as fast as `before` the engine has to be."""

    name: str
    model: str
    streams: int
    tokens: int
    who: tuple[str, ...]
    bar: float


ALL = ("engine", "modules", "before", "course", "loop", "folded")
WRITINGS = [
    Writing("plain, 1 stream", "plain", 1, 512, ALL, 10),
    Writing("coffee of 02642c6, 1 stream", "coffee-before", 1, 512, ("engine", "modules", "before", "loop"), 5),
    Writing("coffee, 1 stream", "coffee", 1, 512, ("engine", "modules", "loop"), 5),
    Writing("plain, 32 streams", "plain", 32, 256, ("engine", "before", "loop", "folded"), 12),
    Writing("plain, 64 streams", "plain", 64, 256, ("engine", "before", "loop", "folded"), 12),
]
AGAINST = {"coffee": "coffee of 02642c6, 1 stream"}  # what has no `before` of its own is compared with another's


def prepare(folder: Path) -> None:
    """Puts the tokenizer and the models there: random weights, the same for everyone, that never end a text."""
    tokenizer = train_tokenizer(storyworld.sample_batch(0, 2000), "bpe", VOCAB)
    tokenizer.save(folder / "tokenizer")
    noise = torch.Generator().manual_seed(1)
    for name, config in CONFIGS.items():
        network = build_model(config, seed=0)
        with torch.no_grad():
            network.lm_head.weight.add_(torch.randn(network.lm_head.weight.shape, generator=noise))
            assert network.lm_head.bias is not None
            network.lm_head.bias[tokenizer.eos_id] = -1e4
        safetensors.torch.save_file(network.state_dict(), folder / f"{name}.safetensors")
        old = {key: value for key, value in asdict(config).items() if value != ModelConfig(VOCAB).__dict__[key]}
        (folder / f"{name}.json").write_text(json.dumps({"vocab_size": VOCAB, **old}), encoding="utf-8")


class Contender:
    """A process that writes when it is its turn."""

    def __init__(self, name: str, folder: Path, source: Path) -> None:
        command = [sys.executable, str(HERE / "decoding_contenders.py"), name, str(folder)]
        environment = {**os.environ, "PYTHONPATH": str(source), "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
        self.process = subprocess.Popen(
            command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        self.name = name

    def turn(self, model: str, streams: int, tokens: int, temperature: float = 0.8) -> dict[str, Any]:
        """Seconds, the first stream's ids, and the most memory so far; ValueError where the process has failed."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        asked = {"model": model, "streams": streams, "tokens": tokens, "temperature": temperature}
        with contextlib.suppress(BrokenPipeError):
            self.process.stdin.write(json.dumps(asked) + "\n")
            self.process.stdin.flush()
        if not (line := self.process.stdout.readline()):
            assert self.process.stderr is not None
            raise ValueError(f"{self.name} failed: {(self.process.stderr.read().strip() or '?').splitlines()[-1]}")
        told: dict[str, Any] = json.loads(line)
        return told


@contextlib.contextmanager
def contenders(folder: Path, commit: str) -> Iterator[dict[str, Contender]]:
    """All of them, waiting; without `before` where the commit is not to be had."""
    here = HERE.parent / "src"
    sources = {name: here for name in ALL if name != "before"}
    if commit:
        archive = subprocess.run(["git", "archive", commit, "src"], cwd=HERE.parent, capture_output=True, check=False)
        if archive.returncode:
            say(f"commit {commit} is not in this checkout's history: measured without it")
        else:
            (folder / "before").mkdir()
            subprocess.run(["tar", "-x", "-C", str(folder / "before")], input=archive.stdout, check=True)
            sources["before"] = folder / "before" / "src"
    started = {name: Contender(name, folder, source) for name, source in sources.items()}
    try:
        yield started
    finally:
        for each in started.values():
            each.process.kill()
            each.process.wait()


def check(found: dict[str, Contender], writing: Writing) -> None:
    """Raises ValueError where two contenders, greedy, write different tokens."""
    ids = {
        name: found[name].turn(writing.model, 1, CHECKED_TOKENS, 0.0)["ids"] for name in writing.who if name in found
    }
    for name, each in ids.items():
        if each != ids["engine"]:
            raise ValueError(f"{writing.name}: {name} writes other tokens than the engine: {each} and {ids['engine']}")


def limit(writing: Writing) -> dict[str, float]:
    """Tokens per second that this core could make of the model, and what they are made of."""
    config = CONFIGS[writing.model]
    context = writing.tokens // 2
    network = build_model(config, seed=0)
    tables = ("embeddings.weight", "pair_embeddings.weight")  # of which a token reads a row
    weights = sum(4 * p.numel() for name, p in network.named_parameters() if name not in tables)
    caches = 4 * context * config.num_heads * (config.key_dim + config.value_dim) * writing.streams
    buffer = torch.ones((weights + caches) // 4)
    square = torch.ones(1024, 1024)
    reading = median_seconds(lambda: torch.dot(buffer, buffer))  # the same buffer twice: its bytes are read once
    product = median_seconds(lambda: square @ square)
    rate = 2 * 1024**3 / product
    multiplying = writing.streams * flops_per_token(config, context) / rate
    return {
        "tokens_per_second": round(writing.streams / max(reading, multiplying)),
        "bytes_per_step": weights + caches,
        "gigabytes_per_second": round((weights + caches) / reading / 1e9, 1),
        "gigaflops_per_second": round(rate / 1e9, 1),
    }


def median_seconds(call: Any) -> float:
    """Of a call, among as many as fill a fifth of a second."""
    seconds: list[float] = []
    call()
    while sum(seconds) < 0.2:
        begun = time.perf_counter()
        call()
        seconds.append(time.perf_counter() - begun)
    return statistics.median(seconds)


def race(found: dict[str, Contender], writings: list[Writing], rounds: int) -> list[dict[str, Any]]:
    """Everyone's medians, and ratios made within the rounds."""
    paces: dict[str, dict[str, list[float]]] = {writing.name: {} for writing in writings}
    for writing in writings:
        check(found, writing)
    for round_ in range(rounds + 1):  # the first is to warm up
        for writing in writings:
            for name in writing.who:
                if name in found:
                    told = found[name].turn(writing.model, writing.streams, writing.tokens)
                    if round_:
                        pace = writing.streams * writing.tokens / told["seconds"]
                        paces[writing.name].setdefault(name, []).append(pace)
        say(f"round {round_} of {rounds}" if round_ else "warm")
    results = []
    for writing in writings:
        own = paces[writing.name]
        old = paces[AGAINST.get(writing.model, writing.name)].get("before")
        ratio = old and statistics.median(one / other for one, other in zip(own["engine"], old, strict=True))
        most = limit(writing)
        results.append(
            {
                **writing._asdict(),
                "tokens_per_second": {name: round(statistics.median(each)) for name, each in own.items()},
                "times_before": ratio and round(ratio, 2),
                "reached": ratio and ratio >= writing.bar,
                "limit": most,
                "share_of_limit": round(statistics.median(own["engine"]) / most["tokens_per_second"], 3),
            }
        )
    return results


def measure(rounds: int, tokens: int, commit: str) -> dict[str, Any]:
    """The whole result as JSON-ready values."""
    torch.set_num_threads(1)
    load = round(os.getloadavg()[0], 2)
    writings = [writing._replace(tokens=min(writing.tokens, tokens)) for writing in WRITINGS]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        prepare(folder)
        with contenders(folder, commit) as found:
            results = race(found, writings, rounds)
            engine = found["engine"]
            beside: dict[str, float] = {}
            with neighbour():
                time.sleep(0.2)
                for writing, result in zip(writings, results, strict=True):
                    seconds = [
                        engine.turn(writing.model, writing.streams, writing.tokens)["seconds"]
                        for _ in range(max(1, rounds // 2))
                    ]
                    pace = writing.streams * writing.tokens / statistics.median(seconds)
                    beside[writing.name] = round(pace / result["tokens_per_second"]["engine"], 3)
        one = Contender("engine", folder, HERE.parent / "src")
        empty = one.turn("wide caches", 1, 1)["peak_megabytes"]
        many = one.turn("wide caches", MANY_STREAMS, min(MANY_TOKENS, 2 * tokens))
        one.process.kill()
        one.process.wait()
    streams = {writing.streams: result for writing, result in zip(writings, results, strict=True)}
    paces = [streams[count]["tokens_per_second"]["engine"] for count in (32, 64)]
    return {
        "format_version": 1,
        **about(),
        "load_average_before": load,
        "rounds": rounds,
        "before": commit,
        "writings": results,
        "streams_64_over_32": round(paces[1] / paces[0], 3),
        "beside_a_busy_neighbour_over_alone": beside,
        "many": {
            "streams": MANY_STREAMS,
            "tokens": min(MANY_TOKENS, 2 * tokens),
            "peak_megabytes": round(many["peak_megabytes"]),
            "of_these_before_the_texts": round(empty),
            "allowed_megabytes": MOST_MEGABYTES,
            "seconds": round(many["seconds"], 1),
        },
    }


def as_table(result: dict[str, Any]) -> Table:
    """The result for the terminal."""
    caption = f"{result['machine']}, torch {result['torch']}, one thread, medians of {result['rounds']} rounds"
    table = Table(title="Writing at temperature 0.8, tokens per second", caption=caption)
    table.add_column("")
    for heading in (*ALL, "limit", "vs before", "bar"):
        table.add_column(heading, justify="right")
    for row in result["writings"]:
        paces = row["tokens_per_second"]
        table.add_row(
            row["name"],
            *(f"{paces[name]:,}" if name in paces else "-" for name in ALL),
            f"{row['limit']['tokens_per_second']:,}",
            f"{row['times_before']:.1f}x" if row["times_before"] else "-",
            f"{row['bar']}x" + ("" if row["reached"] is None else " reached" if row["reached"] else " missed"),
        )
    return table


def asked_for(description: str | None, rounds: int) -> argparse.Namespace:
    """The command line's rounds, before and quick."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=rounds)
    parser.add_argument("--before", default=BEFORE, metavar="COMMIT", help="whose writing to set beside ours")
    parser.add_argument("--quick", action="store_true", help="one short round; prints only")
    arguments = parser.parse_args()
    if arguments.rounds < 1:
        parser.error("--rounds must be at least 1")
    return arguments


def main() -> None:
    arguments = asked_for(__doc__, 9)
    rounds, tokens = (1, 64) if arguments.quick else (arguments.rounds, 512)
    result = measure(rounds, tokens, arguments.before)
    if not arguments.quick:
        write("decoding", result)
    console = Console()
    console.print(as_table(result))
    many, beside = result["many"], min(result["beside_a_busy_neighbour_over_alone"].values())
    console.print(
        f"64 streams over 32: {result['streams_64_over_32']:.2f}; beside a busy neighbour at least {beside:.2f} of"
        f" alone; {many['streams']} streams of {many['tokens']} tokens: {many['peak_megabytes']:,} MB"
    )
    print(json.dumps(result, ensure_ascii=False))


if __name__ == "__main__":
    main()
