"""How much faster is the course's training run than the stepwise algorithm? Writes benchmarks/results/course.json.

    python benchmarks/course.py                       the course's sizes on random ids
    python benchmarks/course.py TRAIN.json VALID.json the same on data files of the course's form

The stepwise rival is the course's algorithm taken at its word: one timestep after the other, hidden states and outputs
concatenated as they come, and for each timestep an attention that projects keys and values of the whole prefix again.
Both run the same `train` from the same weights. The losses are compared first; then the two are timed in pairs, one
after the other in the same process, and the ratio is the median over the pairs.
"""

import argparse
import contextlib
import copy
import json
import math
import os
import statistics
import time

import torch
from report import about, write
from torch import Tensor, nn

from rhapsode.course import RNNLanguageModel, SentenceDataset, train

VOCAB_SIZE, EMBED_DIM, HIDDEN_DIM, KEY_DIM, VALUE_DIM = 1024, 64, 128, 32, 32
LENGTH, SEQUENCES, BATCH_SIZE = 128, 128, 1
CHECKED_SEQUENCES = 16


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
    with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere):
        started = time.perf_counter()
        losses = train(lm, data, valid, nn.CrossEntropyLoss(), optimizer, len(data), BATCH_SIZE)
    return time.perf_counter() - started, torch.tensor(losses, dtype=torch.float64)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("data", nargs="*", metavar="FILE", help="training and validation file; random ids if left out")
    parser.add_argument("--pairs", type=int, default=3)
    parser.add_argument("--threads", type=int, help="PyTorch's own choice if left out")
    arguments = parser.parse_args()
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    torch.manual_seed(0)
    if arguments.data:
        data, valid = ([ids[None] for ids in SentenceDataset(file)][:SEQUENCES] for file in arguments.data)
    else:
        data, valid = list(torch.randint(VOCAB_SIZE, (SEQUENCES, BATCH_SIZE, LENGTH))), [
            torch.randint(VOCAB_SIZE, (BATCH_SIZE, LENGTH))
        ]  # fmt: skip
    start = RNNLanguageModel(EMBED_DIM, HIDDEN_DIM, VOCAB_SIZE, KEY_DIM, VALUE_DIM)

    few = data[:CHECKED_SEQUENCES]  # which warms both up, too
    ours, theirs = (timed(kind, start, few, valid)[1] for kind in (RNNLanguageModel, Stepwise))
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=0)

    pairs = []
    for _ in range(arguments.pairs):
        (seconds, ours), (stepwise_seconds, theirs) = (
            timed(kind, start, data, valid) for kind in (RNNLanguageModel, Stepwise)
        )
        # Rounding errors grow with the updates: two orders of summation part by some 1e-5 in 128 of them.
        torch.testing.assert_close(ours, theirs, rtol=2e-4, atol=0)
        pairs.append((seconds, stepwise_seconds))
        print(f"fast {seconds:.2f} s, stepwise {stepwise_seconds:.2f} s, ratio {stepwise_seconds / seconds:.1f}")
    result = {
        "format_version": 1,
        **about(),
        "data": "files" if arguments.data else "random ids",
        "sequences": len(data),
        "length": LENGTH,
        "batch_size": BATCH_SIZE,
        "fast_seconds": [round(seconds, 3) for seconds, _ in pairs],
        "stepwise_seconds": [round(seconds, 3) for _, seconds in pairs],
        "ratio": round(statistics.median(stepwise / fast for fast, stepwise in pairs), 1),
        "largest_relative_difference_of_losses": float(f"{((ours - theirs) / theirs).abs().max():.1e}"),
    }
    write("course", result)
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
