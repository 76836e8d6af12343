"""The course's training protocol against one written out from its description."""

from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from rhapsode.course import RNNLanguageModel, train, validate

VOCAB = 19


def made() -> RNNLanguageModel:
    torch.manual_seed(1)
    return RNNLanguageModel(6, 8, VOCAB, 3, 4)


def batches(count: int, B: int = 2, seed: int = 2) -> list[Tensor]:
    """Lengths differ from batch to batch."""
    generator = torch.Generator().manual_seed(seed)
    return [torch.randint(VOCAB, (B, 3 + n % 5), generator=generator) for n in range(count)]


def one_by_one(
    lm: RNNLanguageModel,
    train_data: list[Tensor],
    valid_data: list[Tensor],
    loss_fn: Callable,
    optimizer: torch.optim.Optimizer,
    num_sequences: int,
    batch_size: int,
) -> tuple[list[float], list[float]]:
    val_index = max(int(num_sequences * 0.1) // batch_size, 1)
    train_losses, valid_losses, total = [], [], 0.0
    for index, tokens in enumerate(train_data):
        if index == num_sequences // batch_size:
            break
        logits = lm(tokens)[0][:, :-1].reshape(-1, VOCAB)
        loss = loss_fn(logits, tokens[:, 1:].reshape(-1))
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(lm.parameters(), 1.0)
        optimizer.step()
        total += loss.item()
        if index % val_index == 0:
            train_losses.append(round(total / (val_index if index else 1), 6))
            first = valid_data[0]
            with torch.no_grad():
                loss = loss_fn(lm(first)[0][:, :-1].reshape(-1, VOCAB), first[:, 1:].reshape(-1))
            valid_losses.append(round(loss.item(), 6))
            total = 0.0
    return train_losses, valid_losses


ADAM = lambda p: torch.optim.Adam(p, lr=1e-2)  # noqa: E731
SGD = lambda p: torch.optim.SGD(p, lr=0.3, momentum=0.5)  # noqa: E731


@pytest.mark.parametrize("make_optimizer", [ADAM, SGD], ids=["adam", "sgd"])
@pytest.mark.parametrize(
    "loss_fn",
    [nn.CrossEntropyLoss(), nn.CrossEntropyLoss(label_smoothing=0.2), nn.CrossEntropyLoss(reduction="sum"),
     lambda x, y: nn.functional.nll_loss(torch.log_softmax(x, 1), y) * 3],
    ids=["mean", "smoothed", "sum", "function"],
)  # fmt: skip
@pytest.mark.parametrize(
    ("count", "num_sequences", "batch_size"),
    [(40, 80, 2), (40, 60, 2), (12, 500, 2), (30, 59, 2), (7, 14, 2), (25, 50, 3)],
)
def test_losses_follow_the_protocol(
    count: int, num_sequences: int, batch_size: int, loss_fn: Callable, make_optimizer: Callable
) -> None:
    """The divisor of the first report, the stop, sequences left over, data that end early, a divisor below 1."""
    results = []
    for run in (train, one_by_one):
        lm = made()
        data, valid = batches(count), batches(3, seed=4)
        results.append(run(lm, data, valid, loss_fn, make_optimizer(lm.parameters()), num_sequences, batch_size))
    (train_losses, valid_losses), expected = results
    assert len(train_losses) == len(valid_losses) == len(expected[0])
    assert train_losses == pytest.approx(expected[0], rel=1e-5)
    assert valid_losses == pytest.approx(expected[1], rel=1e-5)
    assert all(loss == round(loss, 6) for loss in train_losses + valid_losses)


def test_any_iterable_gives_the_same() -> None:
    """A generator of validation data can be read once only, and its first batch is scored at each report."""
    data = torch.stack([batch[0] for batch in batches(200) if batch.shape[1] == 4])
    valid = torch.stack([batch[0] for batch in batches(50, seed=4) if batch.shape[1] == 5])

    def losses(make: Callable) -> tuple:
        lm = made()
        return train(lm, make(data), make(valid), nn.CrossEntropyLoss(), ADAM(lm.parameters()), 40, 4)

    expected = losses(lambda rows: list(rows.split(4)))
    assert losses(lambda rows: iter(rows.split(4))) == expected
    assert losses(lambda rows: (batch for batch in rows.split(4))) == expected
    assert losses(lambda rows: DataLoader(list(rows), batch_size=4)) == expected


def test_no_batch_too_many_is_taken_and_the_loss_is_called_once_a_batch() -> None:
    """Once per batch and once per validation, with (N, V) and (N,)."""
    taken, shapes = [], []

    def data() -> Iterator[Tensor]:
        for batch in batches(100):
            taken.append(batch)
            yield batch

    def loss_fn(logits: Tensor, targets: Tensor) -> Tensor:
        shapes.append((tuple(logits.shape), tuple(targets.shape)))
        return nn.functional.cross_entropy(logits, targets)

    lm = made()
    reports, _ = train(lm, data(), batches(1), loss_fn, ADAM(lm.parameters()), 20, 2)
    assert len(taken) == 10
    assert len(reports) == 10
    assert len(shapes) == 20
    sizes = [2 * (batch.shape[1] - 1) for batch in taken]
    assert shapes[::2] == [((n, VOCAB), (n,)) for n in sizes]


def test_validate_scores_the_first_batch_without_gradients() -> None:
    lm, valid = made(), batches(3)
    loss = validate(lm, valid, nn.CrossEntropyLoss())
    assert isinstance(loss, float)
    logits, _, _ = lm(valid[0])
    expected = nn.functional.cross_entropy(logits[:, :-1].transpose(1, 2), valid[0][:, 1:])
    assert loss == pytest.approx(expected.item(), rel=1e-6)
    validate(lm, valid, lambda x, y: (x.sum() * 0 + 1) if not x.requires_grad else pytest.fail("a graph was made"))
    assert all(parameter.grad is None for parameter in lm.parameters())


class Noisy(nn.Module):
    """A model with dropout, one part of which is not trained and stays in evaluation mode."""

    def __init__(self) -> None:
        super().__init__()
        self.lm, self.dropout, self.frozen = made(), nn.Dropout(0.5), nn.Dropout(0.5).eval()

    def forward(self, tokens: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        logits, hidden, y = self.lm(tokens)
        return self.frozen(self.dropout(logits)), hidden, y


@pytest.mark.parametrize("training", [True, False])
def test_validate_is_without_dropout_and_puts_the_modes_back(training: bool) -> None:
    """The same number twice, that of the model without dropout; each module in its mode again, after an error too."""
    noisy, valid, loss_fn = Noisy().train(training), batches(1), nn.CrossEntropyLoss()
    noisy.frozen.eval()
    before = {name: module.training for name, module in noisy.named_modules()}
    assert validate(noisy, valid, loss_fn) == validate(noisy, valid, loss_fn) == validate(made(), valid, loss_fn)
    assert {name: module.training for name, module in noisy.named_modules()} == before
    with pytest.raises(ValueError, match="no batch"):
        validate(noisy, [], loss_fn)
    assert {name: module.training for name, module in noisy.named_modules()} == before


def test_train_trains_in_training_mode() -> None:
    """A model that comes from evaluation has its dropout back, in the batch behind each validation too."""
    noisy, modes = Noisy().eval(), []

    def loss_fn(logits: Tensor, targets: Tensor) -> Tensor:
        modes.append(noisy.dropout.training)
        return nn.functional.cross_entropy(logits, targets)

    train(noisy, batches(3), batches(1), loss_fn, SGD(noisy.parameters()), 6, 2)
    assert modes == [True, False] * 3
    assert noisy.training


def test_nothing_to_score_is_an_error() -> None:
    lm = made()
    optimizer = ADAM(lm.parameters())
    with pytest.raises(ValueError, match="validation data hold no batch"):
        train(lm, batches(3), [], nn.CrossEntropyLoss(), optimizer, 4, 2)
    with pytest.raises(ValueError, match=r"t >= 2 to predict something, got \(2, 1\)"):
        train(lm, [torch.zeros(2, 1, dtype=torch.int64)], batches(1), nn.CrossEntropyLoss(), optimizer, 4, 2)


def test_each_report_prints_a_line_and_the_generator_stands_still(capsys: pytest.CaptureFixture[str]) -> None:
    """stdout holds the reports and nothing else; training draws no random number."""
    lm = made()
    before = torch.get_rng_state()
    train(lm, batches(20), batches(1), nn.CrossEntropyLoss(), ADAM(lm.parameters()), 40, 2)
    assert torch.equal(before, torch.get_rng_state())
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(" | ")[0] for line in lines] == [f"Batch: {n}" for n in range(0, 20, 2)]
    assert lines[1].split(" | ")[1] == "Sequence length: 5"
    assert all(line.split(" | ")[2].startswith("Elapsed time (minutes): 0.") for line in lines)


def test_a_foreign_activation_trains() -> None:
    results = []
    for run in (train, one_by_one):
        lm = made()
        lm.rnn.cell.activation = nn.Sigmoid()
        results.append(run(lm, batches(20), batches(1), nn.CrossEntropyLoss(), SGD(lm.parameters()), 40, 2))
    assert results[0][0] == pytest.approx(results[1][0], rel=1e-5)
