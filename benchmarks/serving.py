"""How much does a server cost, beside the bare engine, with many clients that stream at once?

    python benchmarks/serving.py                  five minutes; writes benchmarks/results/serving.json
    python benchmarks/serving.py --quick          seconds; printed only

CLIENTS clients stream texts of TOKENS tokens from `rhapsode serve` on loopback, each one after the other, for a minute;
they are a process of their own on the same machine. The bare engine, alone on it, continues as many texts at once, of
the same length and drawn alike, before and after: the ratio is that of the server's tokens per second to the mean of
both. Then 10,000 short requests: memory after them, less memory after the first 1,000.

Time to the first token and between two pieces of text are the clients'. A piece has one token or, where many stream,
several: what came since the piece before (serve/driver.py). The weights are random, but the end token is all but
forbidden, so that texts have their full length. The last line printed is one JSON object.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any
from urllib.request import Request, urlopen

import torch
from report import HERE, about, write

from rhapsode import storyworld
from rhapsode.decode import Engine, GenerationRequest, SampleConfig, Written, prompt_ids
from rhapsode.decode import write as generated
from rhapsode.model import ModelConfig, build_model
from rhapsode.progress import say
from rhapsode.recipe.presets import PRESETS
from rhapsode.run import Run
from rhapsode.tokenizer import train_tokenizer

CLIENTS, TOKENS, SHORT_TOKENS = 64, 256, 4
PROMPT = "Once upon a time"
VOCAB = 1024
CONFIGS = {
    "plain, hidden 128": ModelConfig(VOCAB, embed_dim=128, hidden_dim=128, key_dim=128, value_dim=128),
    "coffee": ModelConfig(VOCAB, **PRESETS["coffee"]["model"]),
}
BAR = 0.5
MOST_GROWTH = 0.05  # of the memory after the first requests


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a few seconds, printed only")
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--requests", type=int, default=10_000)
    options = parser.parse_args()
    if options.quick:
        options.seconds, options.requests = 4.0, 600
    result: dict[str, Any] = {"format_version": 1, **about(), "clients": CLIENTS, "tokens": TOKENS, "models": {}}
    with tempfile.TemporaryDirectory() as folder:
        for number, name in enumerate(CONFIGS):
            path = make_run(name, Path(folder) / f"run{number}")
            measured = measure(path, options.seconds, options.requests)
            result["models"][name] = measured
            say(summary(name, measured))
    if not options.quick:
        write("serving", result)
    print(json.dumps(result))


def make_run(name: str, path: Path) -> Path:
    """A run directory of an untrained model that does not end its texts."""
    tokenizer = train_tokenizer(storyworld.sample_batch(0, 500), "bpe", VOCAB)
    config = CONFIGS[name]
    network = build_model(ModelConfig(**{**asdict(config), "vocab_size": tokenizer.vocab_size}), seed=0)
    with torch.no_grad():
        if network.lm_head.bias is not None:
            network.lm_head.bias[tokenizer.eos_id] = -100.0
    files = {"model": asdict(network.config), "tokenizer": tokenizer.fingerprint}
    Run.create(path, files, tokenizer, network)
    return path


def measure(path: Path, seconds: float, requests: int) -> dict[str, Any]:
    """The engine, the server under load, the engine again; then the server's memory over many requests."""
    before = bare(path, seconds / 4)
    with serving(path) as (url, process):
        check_agreement(url, path)
        clients(url, CLIENTS, 2.0, 10**9, TOKENS)  # warm
        loaded = clients(url, CLIENTS, seconds, 10**9, TOKENS)
        memory = memory_over(url, process, requests)
    after = bare(path, seconds / 4)
    engine = (before + after) / 2
    return {
        "engine_tokens_per_second": engine,
        "engine_before_and_after": [before, after],
        "server": loaded,
        "ratio": loaded["tokens_per_second"] / engine,
        **memory,
    }


def check_agreement(url: str, path: Path) -> None:
    """Raises ValueError where the server writes other tokens than the engine: no speed of wrong texts is reported."""
    run = Run.open(path)
    engine, bias = Engine(run.load_model(), run.tokenizer), {run.tokenizer.eos_id: -100.0}
    for seed in range(3):
        config = SampleConfig(TOKENS, 0.8, logit_bias=bias, seed=seed)
        expected = [token.id for _, token in generated(engine, PROMPT, config)]
        body = {
            **{"prompt": PROMPT, "max_tokens": TOKENS, "temperature": 0.8, "seed": seed, "return_token_ids": True},
            "logit_bias": {str(id): value for id, value in bias.items()},
        }
        asked = Request(f"{url}/v1/completions", json.dumps(body).encode(), {"Content-Type": "application/json"})
        with urlopen(asked) as answer:
            found = json.load(answer)["choices"][0]["token_ids"]
        if found != expected:
            raise ValueError(f"with seed {seed} the server writes {found[:20]}, the engine {expected[:20]}")


def bare(path: Path, seconds: float) -> float:
    """Tokens per second of the engine alone, CLIENTS texts at once, each followed by another; a process of its own."""
    command = [sys.executable, __file__, "--bare", str(path), str(seconds)]
    return float(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


def bare_engine(path: Path, seconds: float) -> float:
    """What `bare` runs."""
    run = Run.open(path)
    engine = Engine(run.load_model(), run.tokenizer, max_rows=CLIENTS)
    ids = prompt_ids(run.tokenizer, PROMPT)

    def more() -> None:
        engine.submit(GenerationRequest(ids, SampleConfig(TOKENS, 0.8, logit_bias={run.tokenizer.eos_id: -100.0})))

    for _ in range(CLIENTS):
        more()
    written, begun = 0, 0.0
    for step in range(10**9):
        if step == 100:  # warm
            written, begun = 0, time.perf_counter()
        for event in engine.step():
            written += isinstance(event, Written)
            if event.ended is not None:  # type: ignore[union-attr]
                more()
        if begun and time.perf_counter() - begun > seconds:
            break
    return written / (time.perf_counter() - begun)


@contextmanager
def serving(path: Path) -> Iterator[tuple[str, Any]]:
    """A server of the run: its address and its process."""
    import psutil

    command = [sys.executable, "-m", "rhapsode", "serve", str(path), "--port", "0", "--max-rows", str(CLIENTS)]
    server = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert server.stdout is not None
    try:
        yield server.stdout.readline().strip(), psutil.Process(server.pid)
    finally:
        server.terminate()
        server.wait(60)


def clients(url: str, count: int, seconds: float, requests: int, tokens: int) -> dict[str, Any]:
    """What so many clients see."""
    body = {
        **{"prompt": PROMPT, "max_tokens": tokens, "temperature": 0.8, "stream": True, "logit_bias": {"1": -100}},
        **{"stream_options": {"include_usage": True}},
    }
    command = [sys.executable, str(HERE / "serving_clients.py"), url, str(count), str(seconds), str(requests)]
    done = subprocess.run([*command, json.dumps(body)], capture_output=True, text=True, check=True)
    return json.loads(done.stdout)


def memory_over(url: str, process: Any, requests: int) -> dict[str, Any]:
    """Resident megabytes of the server after a tenth of the requests, and after all."""
    megabytes = []
    for count in (requests // 10, requests - requests // 10):
        seen = clients(url, CLIENTS, 1e9, count, SHORT_TOKENS)
        if seen["errors"]:
            raise ValueError(f"short requests: {seen['errors']}")
        megabytes.append(process.memory_info().rss / 1e6)
    return {"short_requests": requests, "megabytes": megabytes, "growth": megabytes[1] / megabytes[0] - 1}


def summary(name: str, measured: dict[str, Any]) -> str:
    """A line for people."""
    server = measured["server"]
    waits, gaps = server["to_first_token"], server["between_pieces"]
    held = measured["ratio"] >= BAR and not server["errors"] and measured["growth"] <= MOST_GROWTH
    return (
        f"{name}: {server['tokens_per_second']:,.0f} tokens/s to {CLIENTS} clients, the engine alone"
        f" {measured['engine_tokens_per_second']:,.0f} (ratio {measured['ratio']:.2f}, bar {BAR}); first token"
        f" {waits['p50']:.0f} ms (p99 {waits['p99']:.0f}), between pieces {gaps['p50']:.1f} ms (p99 {gaps['p99']:.1f});"
        f" errors {server['errors'] or 'none'}; memory {measured['megabytes'][0]:.0f} to {measured['megabytes'][1]:.0f}"
        f" MB over {measured['short_requests']:,} requests: {'held' if held else 'MISSED'}"
    )


if __name__ == "__main__":
    if sys.argv[1:2] == ["--bare"]:
        print(bare_engine(Path(sys.argv[2]), float(sys.argv[3])))
    else:
        main()
