"""Seeds: every one from 0 to 2^64 - 1, and no two alike."""

import numpy as np
import pytest
import torch

from rhapsode.decode import SampleConfig
from rhapsode.model import ModelConfig, build_model
from rhapsode.recipe import TrainConfig
from rhapsode.seeds import LARGEST_SEED, check_seed, seed_everything
from rhapsode.studies.plans import StudyRequest

SEEDS = [0, 7, 2**31, 2**32 - 1, 2**32, 2**32 + 7, 7 * 2**32, 2**63, 2**63 + 7, LARGEST_SEED]


def seeded_generator(seed: int) -> torch.Generator:
    """PyTorch's own generator, seeded."""
    seed_everything(seed)
    return torch.default_generator


@pytest.mark.parametrize("seed", SEEDS)
def test_a_seed_draws_what_the_twister_draws(seed: int) -> None:
    """Oracle: NumPy's Mersenne Twister. Would catch a state that is written to the wrong place of PyTorch's."""
    twister = np.random.RandomState(seed if seed < 2**32 else [seed % 2**32, seed >> 32])
    expected = twister.randint(0, 2**32, 1500, np.uint32) % 2**31
    drawn = torch.empty(1500, dtype=torch.int32).random_(generator=seeded_generator(seed))
    assert torch.equal(drawn, torch.from_numpy(expected.astype(np.int32)))
    assert seeded_generator(seed).initial_seed() == seed
    with torch.random.fork_rng(devices=[]):
        seed_everything(seed)
        assert torch.equal(torch.empty(1500, dtype=torch.int32).random_(), drawn)


def test_seeds_below_two_to_the_32_are_pytorchs_own() -> None:
    """Would catch other weights and other texts than before for the seeds that people use."""
    for seed in (0, 1, 12345, 2**32 - 1):
        own = torch.Generator().manual_seed(seed)
        assert torch.equal(seeded_generator(seed).get_state(), own.get_state())


def test_all_differ() -> None:
    """Would catch a seed of which only the low, or only the high half counts; PyTorch's own keeps the low one."""
    drawn = {tuple(torch.rand(4, generator=seeded_generator(seed)).tolist()) for seed in SEEDS}
    assert len(drawn) == len(SEEDS)
    config = ModelConfig(5, embed_dim=2, hidden_dim=2)
    weights = {tuple(build_model(config, seed).lm_head.bias.tolist()) for seed in SEEDS}
    assert len(weights) == len(SEEDS)


@pytest.mark.parametrize("seed", [-1, -(2**63), 2**64, 10**30])
def test_everything_outside_is_refused(seed: int) -> None:
    """Would catch PyTorch's 'Overflow when unpacking', or -1 taken for 2^64 - 1."""
    for refuse in (
        lambda: check_seed(seed),
        lambda: seed_everything(seed),
        lambda: build_model(ModelConfig(5), seed),
        lambda: SampleConfig(seed=seed),
        lambda: TrainConfig(tokens=5, seed=seed),
        lambda: StudyRequest("batch", seed=seed),
    ):
        with pytest.raises(ValueError, match=f"seed must be from 0 to 2.64 - 1, got {seed}"):
            refuse()


def test_no_seed_of_several_goes_beyond() -> None:
    """Would catch sample 1 of seed 2^64 - 1 that is drawn with seed 0, as if it were another."""
    check_seed(LARGEST_SEED - 2, count=3)
    with pytest.raises(ValueError, match="3 of them starting at 18446744073709551614 go beyond that"):
        check_seed(LARGEST_SEED - 1, count=3)
    with pytest.raises(ValueError, match="2 of them starting at 18446744073709551615"):
        StudyRequest("batch", seed=LARGEST_SEED, seeds=2)
