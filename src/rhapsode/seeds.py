"""Seeds: 0 to 2^64 - 1, and each draws its own numbers.

PyTorch's CPU generator is a Mersenne Twister, and `manual_seed` gives it the low 32 bits of a seed alone: 7 and
7 + 2^32 would draw the same. A seed of more bits fills the state from both of its halves instead (init_by_array of
Matsumoto and Nishimura 2002); seeds below 2^32 draw what they draw in PyTorch.
"""

LARGEST_SEED = 2**64 - 1
STATE_BEGINS, STATE_WORDS = 24, 624  # of the generator's state: a byte offset, then so many uint64


def check_seed(seed: int, name: str = "seed", count: int = 1) -> None:
    """Raises ValueError where one of `count` seeds, from this one on, is not within 0 to 2^64 - 1."""
    if not 0 <= seed <= LARGEST_SEED:
        raise ValueError(f"{name} must be from 0 to 2^64 - 1, got {seed}")
    if seed + count - 1 > LARGEST_SEED:
        raise ValueError(f"{name} must be from 0 to 2^64 - 1: {count:,} of them starting at {seed} go beyond that")


def seed_everything(seed: int) -> None:
    """Seeds PyTorch's own generators, those of the devices too. Raises ValueError for a seed that is none."""
    import torch

    check_seed(seed)
    torch.manual_seed(seed)
    if seed >= 2**32:
        import numpy as np

        twister = np.random.RandomState([seed % 2**32, seed >> 32])
        state = torch.default_generator.get_state().numpy().copy()
        words = slice(STATE_BEGINS, STATE_BEGINS + 8 * STATE_WORDS)
        state[words].view("<u8")[:] = twister.get_state()[1]  # type: ignore[index]
        torch.default_generator.set_state(torch.from_numpy(state))
