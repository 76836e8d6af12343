"""How much faster is the course's training run than the stepwise algorithm? Writes benchmarks/results/course.json.

    python benchmarks/course.py                       the course's sizes on random ids, at batch 1 and batch 64
    python benchmarks/course.py TRAIN.json VALID.json the same on data files of the course's form

The stepwise rival is the course's algorithm taken at its word: one timestep after the other, hidden states and outputs
concatenated as they come, and for each timestep an attention that projects keys and values of the whole prefix again.
Both run the same `train` from the same weights: loss, gradients, clipping, Adam, and ten or eleven validations. The
losses are compared first; then the two are timed in turns, one after the other in the same process, and the ratio is
the median over the turns.
"""

import argparse
import contextlib
import copy
import json
import math
import os
import statistics
import time
from typing import Any

import torch
from report import about, write
from torch import Tensor, nn

from rhapsode.course import RNNLanguageModel, SentenceDataset, train

VOCAB_SIZE, EMBED_DIM, HIDDEN_DIM, KEY_DIM, VALUE_DIM = 1024, 64, 128, 32, 32
LENGTH = 128
BATCHES = {1: 128, 64: 40}  # batches of a run, by their size
CHECKED_BATCHES = {1: 16, 64: 2}


class Stepwise(RNNLanguageModel):
    """The same weights and equations, timestep by timestep."""

    def forward(self, tokens: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        cell, out, attention = self.rnn.cell, self.rnn.out, self.attention
        inputs = self.embeddings(tokens)
        last = inputs.new_zeros(inputs.shape[0], out.in_features)
        hidden_states = outputs = inputs.new_empty(inputs.shape[0], 0, out.in_features)
        for t in range(inputs.shape[1]):
            last = cell.activation(cell.i2h(inputs[:, t]) + cell.h2h(last))
            hidden_states = torch.cat((hidden_states, last[:, None]), dim=1)
            outputs = torch.cat((outputs, out(last)[:, None]), dim=1)
        attended = outputs[:, :0]
        for t in range(inputs.shape[1]):
            visible = outputs[:, : t + 1]
            keys, values = attention.key_transform(visible), attention.value_transform(visible)
            query = attention.query_transform(outputs[:, t])
            weights = torch.softmax(keys @ query[:, :, None] / math.sqrt(keys.shape[-1]), dim=1)  # (B, t, 1)
            output = attention.output_transform((weights * values).sum(1))
            attended = torch.cat((attended, output[:, None]), dim=1)
        return self.lm_head(attended), hidden_states, outputs


def timed(kind: type[RNNLanguageModel], start: RNNLanguageModel, data: list[Tensor], valid: list[Tensor]) -> tuple:
    """Trains a copy of `start` on the data: (seconds, losses of every report)."""
    lm = copy.deepcopy(start)
    lm.__class__ = kind
    optimizer = torch.optim.Adam(lm.parameters(), lr=1e-3, fused=True)
    batch_size = len(data[0])
    with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere), contextlib.redirect_stderr(nowhere):
        started = time.perf_counter()
        losses = train(lm, data, valid, nn.CrossEntropyLoss(), optimizer, len(data) * batch_size, batch_size)
    return time.perf_counter() - started, torch.tensor(losses, dtype=torch.float64)


def batches(file: str | None, batch_size: int, count: int) -> list[Tensor]:
    """Random ids, or the sequences of a file, from its start again where it is short."""
    if file is None:
        return list(torch.randint(VOCAB_SIZE, (count, batch_size, LENGTH)))
    dataset = SentenceDataset(file)
    sequences = [dataset[n] for n in range(len(dataset))]
    return [
        torch.stack([sequences[(n * batch_size + row) % len(sequences)] for row in range(batch_size)])
        for n in range(count)
    ]


def compare(files: list[str], batch_size: int, turns: int) -> dict[str, Any]:
    """Both trained at one batch size: seconds of every turn, the median ratio, how far the losses are apart."""
    torch.manual_seed(0)
    train_file, valid_file = files or (None, None)
    data, valid = batches(train_file, batch_size, BATCHES[batch_size]), batches(valid_file, batch_size, 1)
    start = RNNLanguageModel(EMBED_DIM, HIDDEN_DIM, VOCAB_SIZE, KEY_DIM, VALUE_DIM)

    few = data[: CHECKED_BATCHES[batch_size]]  # which warms both up, too
    ours, theirs = (timed(kind, start, few, valid)[1] for kind in (RNNLanguageModel, Stepwise))
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=0)

    seconds: list[tuple[float, float]] = []
    for _ in range(turns):
        (fast, ours), (stepwise, theirs) = (timed(kind, start, data, valid) for kind in (RNNLanguageModel, Stepwise))
        # Rounding errors grow with the updates: two orders of summation part by some 1e-5 in 128 of them.
        torch.testing.assert_close(ours, theirs, rtol=2e-4, atol=0)
        seconds.append((fast, stepwise))
        ratio = stepwise / fast
        print(f"batch {batch_size}: fast {fast:.2f} s, stepwise {stepwise:.2f} s, ratio {ratio:.1f}", flush=True)
    return {
        "batch_size": batch_size,
        "batches": len(data),
        "fast_seconds": [round(fast, 3) for fast, _ in seconds],
        "stepwise_seconds": [round(stepwise, 3) for _, stepwise in seconds],
        "ratio": round(statistics.median(stepwise / fast for fast, stepwise in seconds), 1),
        "largest_relative_difference_of_losses": float(f"{((ours - theirs) / theirs).abs().max():.1e}"),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("data", nargs="*", metavar="FILE", help="training and validation file; random ids if left out")
    parser.add_argument("--batch", type=int, nargs="+", choices=BATCHES, default=[*BATCHES], metavar="N")
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--threads", type=int, help="PyTorch's own choice if left out")
    parser.add_argument("--quick", action="store_true", help="prints only")
    arguments = parser.parse_args()
    if len(arguments.data) not in (0, 2):
        parser.error("name a training and a validation file, or none")
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    runs = [compare(arguments.data, batch_size, arguments.turns) for batch_size in arguments.batch]
    data = "files" if arguments.data else "random ids"
    result = {"format_version": 2, **about(), "data": data, "length": LENGTH, "runs": runs}
    if not arguments.quick:
        write("course", result)
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
