"""The course's training protocol: batches in the order given, a report after every tenth of the sequences."""

import time
from collections.abc import Callable, Iterable, Iterator, Sized
from itertools import islice

import torch
from torch import Tensor, nn

from rhapsode.machine import keep_freed_memory
from rhapsode.progress import bar
from rhapsode.threads import chosen_threads

REPORTS = 0.1  # of the sequences, between two reports
MAX_GRADIENT_NORM = 1.0

Loss = Callable[[Tensor, Tensor], Tensor]


def train(
    lm: nn.Module,
    train_data: Iterable[Tensor],
    valid_data: Iterable[Tensor],
    loss_fn: Loss,
    optimizer: torch.optim.Optimizer,
    num_sequences: int,
    batch_size: int,
) -> tuple[list[float], list[float]]:
    """Trains for num_sequences // batch_size batches, or until the data end; returns the losses at each report.

    train_data and valid_data are iterables of (B, t) int64 tensors; t may change from batch to batch. loss_fn gets
    logits (B (t-1), V) and targets (B (t-1),), once per batch and once per validation. Losses are rounded to 6
    decimals: (mean training loss since the last report, validation loss). Every report prints a line.

    The sum of losses is divided by the number of batches between reports, by 1 at the first: the course's rule.
    The model is in training mode for the batches, and afterwards.
    Raises ValueError for a sequence of one token and for validation data without a batch.
    """
    keep_freed_memory()
    lm.train()
    batches_per_report = max(int(num_sequences * REPORTS) // batch_size, 1)
    if isinstance(valid_data, Iterator):
        valid_data = list(islice(valid_data, 1))  # can be read once only, and its first batch is what counts
    device = model_device(lm)
    train_losses: list[float] = []
    valid_losses: list[float] = []
    since_report: list[Tensor] = []
    started = time.monotonic()
    batches = num_sequences // batch_size
    total_batches = min(batches, len(train_data)) if isinstance(train_data, Sized) else batches
    with bar("training", total_batches * batch_size, "sequences") as advance, chosen_threads() as threads:
        for index, tokens in enumerate(islice(train_data, batches)):
            begun = time.perf_counter()
            loss = next_token_loss(lm, tokens.to(device), loss_fn)
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(lm.parameters(), MAX_GRADIENT_NORM)
            optimizer.step()
            since_report.append(loss.detach())  # read at the report: a number each time would make a GPU wait
            threads.worked("step", time.perf_counter() - begun, tokens.numel())
            advance(batch_size)
            if index % batches_per_report == 0:
                total = torch.stack(since_report).cpu().double().sum().item()
                train_losses.append(round(total / (batches_per_report if index else 1), 6))
                valid_losses.append(round(validate(lm, valid_data, loss_fn), 6))
                since_report = []
                minutes = (time.monotonic() - started) / 60
                print(
                    f"Batch: {index} | Sequence length: {tokens.shape[1]} | Elapsed time (minutes): {minutes:.6f}",
                    flush=True,
                )
    return train_losses, valid_losses


@torch.no_grad()
def validate(lm: nn.Module, dataset: Iterable[Tensor], loss_fn: Loss) -> float:
    """The mean loss of the first batch of the dataset, and of that one only: the course's protocol.

    The model is in evaluation mode while it is scored; each of its modules is put back into the mode that it was in.
    Raises ValueError for a dataset without a batch.
    """
    training = [module for module in lm.modules() if module.training]
    lm.eval()
    try:
        for tokens in dataset:
            return next_token_loss(lm, tokens.to(model_device(lm)), loss_fn).item()
    finally:
        for module in training:
            module.training = True
    raise ValueError("the validation data hold no batch")


def next_token_loss(lm: nn.Module, tokens: Tensor, loss_fn: Loss) -> Tensor:
    """loss_fn of the logits at the first t-1 positions of tokens (B, t) and the tokens that follow them."""
    if tokens.ndim != 2 or tokens.shape[1] < 2:
        raise ValueError(f"a batch must be of shape (B, t) with t >= 2 to predict something, got {tuple(tokens.shape)}")
    logits, _, _ = lm(tokens[:, :-1])
    return loss_fn(logits.flatten(0, 1), tokens[:, 1:].flatten())


def model_device(lm: nn.Module) -> torch.device:
    """Where the model's weights are."""
    return next(lm.parameters()).device
