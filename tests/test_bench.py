"""`rhapsode bench`: the yardstick counts what it should, and both forms of the output hold; nothing here is timed."""

import json

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from rhapsode import bench
from rhapsode.model import ModelConfig, build_model

SMALL = bench.Workload("small", ModelConfig(23, embed_dim=5, hidden_dim=7, key_dim=3, value_dim=4), 2, length=11)


def test_flops_of_a_step_are_what_pytorch_counts() -> None:
    """Oracle: PyTorch's counter on the equations as matrix products, every position with the keys that it sees."""
    config, length = SMALL.config, SMALL.length
    model = build_model(config, seed=0)
    tokens, _ = bench.batches(SMALL)[0]
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        h, outputs = torch.zeros(2, 7), []
        for t in range(length):
            h = model.rnn.cell(model.embeddings(tokens[:, t]), h)
            outputs.append(model.rnn.out(h))
        q, k, v = model.attention.project(torch.stack(outputs, 1))
        seen = [
            (q[:, 0, t : t + 1] @ k[:, 0, : t + 1].mT).softmax(-1) @ v[:, 0, : t + 1] for t in range(length)
        ]  # each (2, 1, value_dim)
        model.lm_head(model.attention.output_transform(torch.cat(seen, 1)))
    assert bench.step_flops(SMALL) == 3 * counter.get_total_flops()


def test_one_object_on_stdout(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Would catch a line among the JSON, and a share that is not the step's operations over the product's."""
    monkeypatch.setattr(bench, "WORKLOADS", (SMALL,))
    monkeypatch.setattr(bench, "BURST_SECONDS", 1e-5)
    monkeypatch.setattr(bench, "PRODUCT_SIZE", 64)
    monkeypatch.setattr(bench, "burst", lambda work, calls: work() or (0.5 if "step" in work.__qualname__ else 0.25))
    bench.bench(quick=True, as_json=True, seconds=0.0)
    (row,) = json.loads(capsys.readouterr().out)["settings"]
    assert row["rounds"] == bench.FEWEST_ROUNDS
    assert row["tokens_per_second"] == 2 * 11 / 0.5
    assert row["milliseconds_per_step"] == 500
    assert row["share_of_product_rate"] == round(bench.step_flops(SMALL) / 0.5 / (2 * 64**3 / 0.25), 3)
    bench.bench(quick=True, seconds=0.0)
    assert "small" in capsys.readouterr().out


def test_a_burst_divides_by_its_calls(monkeypatch: pytest.MonkeyPatch) -> None:
    """Would catch an untimed call that is counted, or one that is timed."""
    now = [0.0]
    monkeypatch.setattr(bench.time, "perf_counter", lambda: now[0])
    calls: list[float] = []

    def work() -> None:
        now[0] += 1.0 if calls else 100.0
        calls.append(now[0])

    assert bench.burst(work, 4) == 1.0
    assert len(calls) == 5
