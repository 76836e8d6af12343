"""Those who write text in decoding.py, each in a process of its own that waits for its turns.

    python benchmarks/decoding_contenders.py NAME FOLDER

FOLDER has the models, by name, and the tokenizer. Reads a line of JSON for each turn from standard input, and writes
one with the seconds and the tokens; `before` runs with PYTHONPATH at an old commit, and imports nothing newer.
"""

import functools
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

PROMPT = "Once upon a time"
Turn = Callable[[str, int, int, float], list[int]]  # (model, streams, tokens, temperature) -> ids of the first stream


class Models:
    """The models of the folder, built when they are first asked for."""

    def __init__(self, folder: Path) -> None:
        from rhapsode.tokenizer import Tokenizer

        self.folder, self.tokenizer = folder, Tokenizer.load(folder / "tokenizer")
        self.prompt = [self.tokenizer.eos_id, *self.tokenizer.encode(PROMPT)]

    @functools.cache  # noqa: B019 (as long as the process)
    def model(self, name: str) -> Any:
        """A network in eval mode."""
        import safetensors.torch

        from rhapsode.model import ModelConfig, build_model

        config = json.loads((self.folder / f"{name}.json").read_text(encoding="utf-8"))
        made = build_model(ModelConfig(**config), 0)
        made.load_state_dict(safetensors.torch.load_file(self.folder / f"{name}.safetensors"))
        return made.eval()

    @functools.cache  # noqa: B019
    def engine(self, name: str) -> Any:
        """The decoding engine of a network."""
        from rhapsode.decode import Engine

        return Engine(self.model(name), self.tokenizer, max_rows=1024)


def by_engine(models: Models) -> Turn:
    """What everyone gets: tokens, texts and log-probabilities."""
    from rhapsode.decode import SampleConfig, write

    def turn(name: str, streams: int, tokens: int, temperature: float) -> list[int]:
        config = SampleConfig(max_tokens=tokens, temperature=temperature)
        return [each.id for sample, each in write(models.engine(name), PROMPT, config, streams) if sample == 0]

    return turn


def by_modules(models: Models) -> Turn:
    """The engine without its kernel."""
    from rhapsode.decode import engine

    engine.usable_kernel = lambda: None  # type: ignore[assignment]
    return by_engine(models)


def before(models: Models) -> Turn:
    """`sample.write` of an old commit."""
    from rhapsode.sample import SampleConfig, write  # type: ignore[import-not-found]

    def turn(name: str, streams: int, tokens: int, temperature: float) -> list[int]:
        config = SampleConfig(max_tokens=tokens, temperature=temperature)
        written = write(models.model(name), models.tokenizer, PROMPT, config, streams)
        return [each.id for each in written if each.sample == 0]

    return turn


def by_course(models: Models) -> Turn:
    """`generate` of the course's model: one stream, no text."""
    from rhapsode.course import RNNLanguageModel

    @functools.cache
    def course_model(name: str) -> RNNLanguageModel:
        network = models.model(name)
        size = network.config
        made = RNNLanguageModel(size.embed_dim, size.hidden_dim, size.vocab_size, size.key_dim, size.value_dim)
        made.load_state_dict(dict(zip(made.state_dict(), network.state_dict().values(), strict=True)))
        return made.eval()

    @torch.no_grad()
    def turn(name: str, streams: int, tokens: int, temperature: float) -> list[int]:
        return course_model(name).generate(torch.tensor([models.prompt]), tokens, temperature).tolist()

    return turn


def by_loop(models: Models, folded: bool = False) -> Turn:
    """A loop over `model(token, state)` as one would write it: all streams in one batch, no text. Folded or not."""

    @torch.inference_mode()
    def turn(name: str, streams: int, tokens: int, temperature: float) -> list[int]:
        model = models.model(name)
        call = model.folded() if folded else model
        generator = torch.Generator().manual_seed(0)
        logits, state = call(torch.tensor([models.prompt] * streams), None)
        found = []
        for _ in range(tokens):
            if temperature:
                shares = (logits[:, -1] / temperature).softmax(-1)
                token = torch.multinomial(shares, 1, generator=generator)
            else:
                token = logits[:, -1:].argmax(-1)
            found.append(int(token[0]))
            logits, state = call(token, state)
        return found

    return turn


CONTENDERS: dict[str, Callable[[Models], Turn]] = {
    "engine": by_engine,
    "modules": by_modules,
    "before": before,
    "course": by_course,
    "loop": by_loop,
    "folded": functools.partial(by_loop, folded=True),
}


def peak_megabytes() -> float:
    """The most memory that this process has had."""
    try:
        return int(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0]) / 1000
    except OSError:
        import resource

        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak / (1e6 if sys.platform == "darwin" else 1e3)


def main(name: str, folder: str) -> None:
    """Turns, until standard input ends."""
    torch.set_num_threads(1)
    turn = CONTENDERS[name](Models(Path(folder)))
    for line in sys.stdin:
        asked = json.loads(line)
        begun, used = time.perf_counter(), time.process_time()
        ids = turn(asked["model"], asked["streams"], asked["tokens"], asked["temperature"])
        told = {"seconds": time.perf_counter() - begun, "core_seconds": time.process_time() - used, "ids": ids}
        print(json.dumps(told | {"peak_megabytes": peak_megabytes()}), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
