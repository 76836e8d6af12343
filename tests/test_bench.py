"""The benchmark's rivals compute what we compute, its yardsticks count what they should; nothing here is timed."""

import importlib.util
import json
from pathlib import Path

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from rhapsode import bench
from rhapsode.model import ModelConfig, build_model

SMALL = bench.Setting("small", ModelConfig(23, embed_dim=5, hidden_dim=7, key_dim=3, value_dim=4), 2, length=11)
needs_rivals = pytest.mark.skipif(bench.rival_module() is None, reason="needs benchmarks/ beside the package")


@needs_rivals
@pytest.mark.parametrize("activation", ["relu", "tanh"])
@pytest.mark.parametrize("batch_size", [1, 3])
def test_rivals_have_our_loss_and_gradients(batch_size: int, activation: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches a rival that is fast because it computes something else; float64, all sizes different."""
    monkeypatch.setattr(bench, "TOLERANCE", 1e-11)
    config = ModelConfig(23, embed_dim=5, hidden_dim=7, key_dim=3, value_dim=4, activation=activation)
    models = {name: model.double() for name, model in bench.contenders(config).items()}
    assert list(models) == ["rhapsode", "stepwise", "nn.RNN"]
    tokens, targets = bench.batches(bench.Setting("", config, batch_size, length=6))[0]
    assert bench.check_agreement(models, tokens, targets) > 0


@needs_rivals
def test_a_rival_with_wrong_numbers_is_named() -> None:
    """A speed-up on wrong numbers must not be reported."""
    models = bench.contenders(SMALL.config)
    with torch.no_grad():
        models["nn.RNN"].out.weight[0, 0] += 0.5
    with pytest.raises(ValueError, match=r"nn\.RNN: .* differs from ours by"):
        bench.check_agreement(models, *bench.batches(SMALL)[0])


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


def test_turns_are_taken_and_the_killed_are_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every contender has a time in every round; one whose process ends is named and does not stop the others."""
    monkeypatch.setattr(bench, "BURST_SECONDS", 1e-5)
    turns = bench.take_turns(SMALL, ["nobody", "rhapsode"], seconds=0.0)
    assert turns.peak_megabytes["nobody"] is None
    assert turns.peak_megabytes["rhapsode"] is not None
    assert len(turns.rounds) + turns.left_out == bench.FEWEST_ROUNDS
    assert all(times.keys() == {"rhapsode"} and times["rhapsode"] > 0 for times in turns.rounds)


def test_one_object_on_stdout(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """`--json` prints one object and nothing else; without rivals it says so on stderr and measures the rest."""
    monkeypatch.setattr(bench, "SETTINGS", (SMALL,))
    monkeypatch.setattr(bench, "BURST_SECONDS", 0.001)
    monkeypatch.setattr(bench, "rival_module", lambda: None)
    bench.bench(quick=True, as_json=True, seconds=0.0)
    printed = capsys.readouterr()
    (row,) = json.loads(printed.out)["settings"]
    assert row["tokens_per_second"].keys() == {"rhapsode"}
    assert row["times_as_fast_as"] == {}
    assert "without the rivals" in printed.err
    bench.bench(quick=True, seconds=0.0)
    assert "small" in capsys.readouterr().out


def test_the_plot_is_drawn_from_its_numbers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The figure's code runs on the form of data that the measurement writes."""
    pytest.importorskip("matplotlib")
    path = Path(__file__).parents[1] / "benchmarks" / "training.py"
    spec = importlib.util.spec_from_file_location("training_benchmark", path)
    assert spec is not None
    assert spec.loader is not None
    monkeypatch.syspath_prepend(str(path.parent))
    training = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(training)
    growth = {
        axis: [
            {"size": n, "seconds": dict.fromkeys(training.STYLES, n / 9), "peak_megabytes": {"rhapsode": n}}
            for n in sizes
        ]
        for axis, sizes in training.AXES.items()
    }
    training.plot(growth, tmp_path / "figures" / "growth.svg")
    assert (tmp_path / "figures" / "growth.svg").read_text().count("<svg") == 1
