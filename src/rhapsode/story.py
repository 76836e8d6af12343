"""`make story`: a small model, trained on storyworld for a minute and judged against the corpus's exact entropy."""

import math
import time
from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import torch

from rhapsode import storyworld
from rhapsode.model import LanguageModel, ModelConfig, build_model
from rhapsode.progress import bar, say
from rhapsode.tokenizer import Tokenizer, train_tokenizer

WINDOW = 128
BATCH_SIZE = 32
STORIES_PER_DRAW = 2048
VALID_STORIES = 64
CONFIG = ModelConfig(
    vocab_size=1,
    kind="stacked",
    embed_dim=128,
    hidden_dim=192,
    key_dim=64,
    value_dim=64,
    num_layers=2,
    attention="last",
)  # vocab_size is the tokenizer's, put in when it is known


def train_and_tell(seconds: float, seed: int) -> list[str]:
    """Trains for `seconds` of wall-clock time on the CPU and returns three stories sampled at temperature 0.5."""
    tokenizer = train_tokenizer(storyworld.sample_batch(0, STORIES_PER_DRAW), "bpe", 1024)
    config = replace(CONFIG, vocab_size=tokenizer.vocab_size)
    model = build_model(config, seed)
    floor = storyworld.entropy("valid").bits_per_byte
    say(f"{sum(p.numel() for p in model.parameters()):,} parameters; no model can go below {floor:.3f} bits per byte")
    _train(model, tokenizer, seconds, seed)
    reached = bits_per_byte(model, tokenizer, storyworld.sample_batch(0, VALID_STORIES, "valid"))
    say(f"on {VALID_STORIES} unseen stories: {reached:.3f} bits per byte (floor {floor:.3f})")
    generator = torch.Generator().manual_seed(seed)
    return [tell(model, tokenizer, generator) for _ in range(3)]


def _train(model: LanguageModel, tokenizer: Tokenizer, seconds: float, seed: int) -> None:
    optimizer = torch.optim.AdamW(model.parameters(), lr=4e-3, betas=(0.9, 0.99), weight_decay=0.01, fused=True)
    batches = windows(tokenizer, seed)
    floor = storyworld.entropy().bits_per_byte
    started, told = time.monotonic(), 0.0
    with bar("training", seconds, "s of training") as advance:
        while (elapsed := time.monotonic() - started) < seconds:
            for group in optimizer.param_groups:
                group["lr"] = 4e-3 * min(1.0, (elapsed + 0.1) / (0.05 * seconds)) * (1 - elapsed / seconds)
            rows, bytes_per_token = next(batches)
            loss, _ = model.loss(rows[:, :-1], rows[:, 1:])
            if not math.isfinite(loss.item()):
                raise FloatingPointError(f"the loss became {loss.item()} after {elapsed:.0f} s of training; try --seed")
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            now = time.monotonic() - started
            advance(now - elapsed)
            if now - told > seconds / 10:
                told = now
                bits = loss.item() / math.log(2) / bytes_per_token
                say(f"{now:4.0f} s: {bits:.3f} bits per byte in training (floor {floor:.3f})")


def windows(tokenizer: Tokenizer, seed: int) -> Iterator[tuple[torch.Tensor, float]]:
    """Endless batches (BATCH_SIZE, WINDOW + 1) of fresh stories, each with its mean of bytes per token."""
    # Draws are spaced so that two seeds never share a story; draw 0 is what the tokenizer was trained on.
    draw = 1 + seed * 1_000_003
    while True:
        texts = storyworld.sample_batch(draw * STORIES_PER_DRAW, STORIES_PER_DRAW)
        draw += 1
        ids = np.concatenate([np.append(story, tokenizer.eos_id) for story in tokenizer.encode_batch(texts)])
        bytes_per_token = sum(len(text.encode()) for text in texts) / len(ids)
        rows = torch.from_numpy(ids.astype(np.int64))[: len(ids) // (WINDOW + 1) * (WINDOW + 1)].view(-1, WINDOW + 1)
        for start in range(0, len(rows) - BATCH_SIZE + 1, BATCH_SIZE):
            yield rows[start : start + BATCH_SIZE], bytes_per_token


@torch.inference_mode()
def bits_per_byte(model: LanguageModel, tokenizer: Tokenizer, texts: list[str]) -> float:
    """Bits per UTF-8 byte over whole stories, each from a fresh state, its end included."""
    nats = 0.0
    for text in texts:
        ids = [tokenizer.eos_id, *tokenizer.encode(text), tokenizer.eos_id]
        rows = torch.tensor([ids])
        nats += model.loss(rows[:, :-1], rows[:, 1:], reduction="sum")[0].item()
    return nats / math.log(2) / sum(len(text.encode()) for text in texts)


@torch.inference_mode()
def tell(model: LanguageModel, tokenizer: Tokenizer, generator: torch.Generator, longest: int = 400) -> str:
    """One story sampled at temperature 0.5 from a fresh state, of at most `longest` tokens."""
    token, state, ids = torch.tensor([tokenizer.eos_id]), None, []
    for _ in range(longest):
        logits, state = model.step(token, state)
        token = torch.multinomial(torch.softmax(logits[0] / 0.5, 0), 1, generator=generator)
        if token.item() == tokenizer.eos_id:
            break
        ids.append(int(token.item()))
    return tokenizer.decode(ids)
