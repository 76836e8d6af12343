"""What training and writing gave when it was written down, and what they give now.

python tests/golden/golden.py            says how far both are from what is written down
python tests/golden/golden.py --write    trains and writes all of it anew: do this only where a change is meant

stories.jsonl   beginnings of storyworld's stories, so that its grammar may change and these numbers need not
curve.json      the losses and gradient norms of 20 steps of training on them
run/            a run directory: the tokenizer of the stories, and a model of 40 KB that has read them often
story.json      what that model writes, greedily, after a prompt
"""

import json
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch

from rhapsode import storyworld
from rhapsode.decode import Engine, SampleConfig, write
from rhapsode.model import ModelConfig
from rhapsode.recipe import OptimizerConfig, Recipe, TrainConfig
from rhapsode.run import Run
from rhapsode.sources import open_source
from rhapsode.tokenizer import Tokenizer, train_tokenizer
from rhapsode.tokens import BatchConfig, TokenStore, prepare
from rhapsode.training import train_run
from rhapsode.training.start import create_run

HERE = Path(__file__).resolve().parent
STORIES, CURVE, RUN, STORY = HERE / "stories.jsonl", HERE / "curve.json", HERE / "run", HERE / "story.json"

STORY_COUNT, STORY_LENGTH = 60, 160
VOCAB_SIZE = 320
PROMPT = "In a small cottage"
MAX_TOKENS = 60
LEAST_GAP = 0.02  # nats between the likeliest token and the next; another processor moves them by 1e-5

# Everything that a stacked model can have, but dropout, whose draws are another processor's own.
MODEL: dict[str, Any] = {
    "kind": "stacked",
    "embed_dim": 14,
    "hidden_dim": 18,
    "key_dim": 5,
    "value_dim": 4,
    "num_layers": 2,
    "num_heads": 2,
    "attention": "last",
    "gate": True,
    "feed_forward": 2,
    "tie_embeddings": True,
    "pair_embeddings": 61,
}
OPTIMIZER: dict[str, Any] = {"weight_decay": 0.5, "clip_norm": 1.2}


def stores(tokenizer: Tokenizer, cache: Path) -> tuple[TokenStore, TokenStore]:
    return prepare(open_source([str(STORIES)]), tokenizer, cache).hold_out(0.1, seed=0)


def trained(folder: Path, tokenizer: Tokenizer, optimizer: dict[str, Any], batch: BatchConfig, **training: Any) -> Run:
    """A run in `folder`, trained to its end."""
    recipe = Recipe(
        ModelConfig(tokenizer.vocab_size, **MODEL),
        OptimizerConfig(**optimizer),
        TrainConfig(seed=7, prompt="", **training),
        batch,
    )
    run = create_run(folder / "run", recipe, tokenizer, {})
    train_run(run, *stores(tokenizer, folder / "cache"), show=False)
    return run


def curve() -> dict[str, list[float]]:
    """The losses in nats and the gradients' norms of 20 steps, and the validation losses after each fifth."""
    batch = BatchConfig(window=16, batch_size=8, carry_state=True)
    optimizer = {**OPTIMIZER, "warmup_steps": 5}
    with tempfile.TemporaryDirectory() as folder:
        tokenizer = Tokenizer.load(RUN / "tokenizer")
        metrics = trained(Path(folder), tokenizer, optimizer, batch, sequences=20 * 8, validations=4).metrics()
    steps = [entry for entry in metrics if entry["event"] == "train"]
    return {
        "train_loss": [entry["train_loss"] for entry in steps],
        "gradient_norm": [entry["gradient_norm"] for entry in steps],
        "valid_loss": [entry["valid_loss"] for entry in metrics if entry["event"] == "valid"],
    }


def story() -> dict[str, Any]:
    """What the run writes after the prompt: the text, its ids, and the natural log-probability of each."""
    run = Run.open(RUN)
    config = SampleConfig(max_tokens=MAX_TOKENS, temperature=0)
    written = [token for _, token in write(Engine(run.load_model(), run.tokenizer), PROMPT, config)]
    return {
        "prompt": PROMPT,
        "text": "".join(token.text for token in written),
        "ids": [token.id for token in written],
        "log_probabilities": [token.log_probability for token in written],
    }


def least_gap(ids: list[int]) -> float:
    """The smallest distance in nats between the likeliest token and the next, over all steps of the story."""
    run = Run.open(RUN)
    read = [run.tokenizer.eos_id, *run.tokenizer.encode(PROMPT)]
    with torch.inference_mode():
        logits, _ = run.load_model()(torch.tensor([read + ids]))
    best = logits[0, len(read) - 1 : -1].topk(2, dim=-1).values
    return float((best[:, 0] - best[:, 1]).min())


def make() -> None:
    """Writes all of it; raises ValueError where the story hangs on less than LEAST_GAP."""
    texts = [text[:STORY_LENGTH].rpartition(" ")[0] for text in storyworld.sample_batch(0, STORY_COUNT)]
    STORIES.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts), encoding="utf-8")
    shutil.rmtree(RUN, ignore_errors=True)
    with tempfile.TemporaryDirectory() as folder:
        tokenizer = train_tokenizer(texts, "bpe", VOCAB_SIZE)
        batch = BatchConfig(window=32, batch_size=16)
        run = trained(Path(folder), tokenizer, {}, batch, sequences=3000 * 16, validations=1)
        RUN.mkdir()
        for name in ("run.json", "best.safetensors"):
            shutil.copy(run.path / name, RUN / name)
        shutil.copytree(run.path / "tokenizer", RUN / "tokenizer")
    CURVE.write_text(json.dumps(curve(), indent=1) + "\n", encoding="utf-8")
    told = story()
    if (gap := least_gap(told["ids"])) < LEAST_GAP:
        raise ValueError(f"a step of the story hangs on {gap:.4f} nats: choose another PROMPT, or train longer")
    STORY.write_text(json.dumps(told, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def largest_share(found: list[float], written: list[float]) -> float:
    """The largest relative difference."""
    return max(abs(a - b) / abs(b) for a, b in zip(found, written, strict=True))


def main() -> None:
    torch.set_num_threads(1)
    if sys.argv[1:] == ["--write"]:
        make()
    elif sys.argv[1:]:
        sys.exit(f"unknown arguments {' '.join(sys.argv[1:])}; there is --write")
    found, written = curve(), json.loads(CURVE.read_text(encoding="utf-8"))
    for name in written:
        print(f"{name}: largest relative difference {largest_share(found[name], written[name]):.1e}")
    told, expected = story(), json.loads(STORY.read_text(encoding="utf-8"))
    print(f"story: {'the same' if told['ids'] == expected['ids'] else 'another'}, {told['text']!r}")
    print(f"log-probabilities: {largest_share(told['log_probabilities'], expected['log_probabilities']):.1e}")
    print(f"the story hangs on {least_gap(expected['ids']):.3f} nats")


if __name__ == "__main__":
    main()
