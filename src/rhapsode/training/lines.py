"""The lines that a training tells about itself."""

from rhapsode.evaluation import Score
from rhapsode.recipe import BUDGETS, TrainConfig
from rhapsode.training.plan import UNKNOWN
from rhapsode.training.progress import Progress


def beginning(config: TrainConfig, parameters: int, where: str, step: int, total: int) -> str:
    """How large the model is, what it trains on, and how long."""
    size = f"{parameters / 1e6:.1f}M parameters" if parameters >= 10**6 else f"{parameters:,} parameters"
    if step:
        return f"{size}, {where}; resumed at step {step:,}"
    amount, unit = next((amount, name) for name in BUDGETS if (amount := getattr(config, name)))
    budget = f"{amount:,.15g} {unit.removesuffix('s') if amount == 1 else unit}"
    steps = f"{total:,} steps" if total < UNKNOWN else "the number of steps is chosen after a short timing"
    return f"{size}, {where}; budget {budget}: {steps}"


def validated(progress: Progress, total: int, train_loss: float, valid: Score, floor: float | None) -> str:
    """What a validation found; floor: of bits per byte, where that is known."""
    rate = progress.tokens / max(progress.seconds, 1e-9)
    against = "" if floor is None else f", the floor is {floor:.3f}"
    if valid.correction_bits:
        against += f", {valid.correction_bits / valid.num_bytes:.3f} of it for what the tokenizer cannot represent"
    bits = "" if valid.bits_per_byte is None else f" ({valid.bits_per_byte:.3f} bits per byte{against})"
    losses = f"train {train_loss:.3f}, valid {valid.nats_per_token:.3f}{bits}"
    best = "" if progress.best_step == progress.step else f", best at step {progress.best_step:,}"
    return f"step {progress.step:,} of {total:,}: {losses}{best}; {rate:,.0f} tokens/s"


def counted(count: int, what: str) -> str:
    """A number of things, in words."""
    return f"{count:,} {what}{'' if count == 1 else 's'}"
