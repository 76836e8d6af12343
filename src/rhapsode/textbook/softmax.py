"""Softmax, temperature and cross-entropy.

A model answers with one number per possible next token, the logits s (V,). Softmax turns them into
probabilities:

    p_j = exp(s_j / τ) / Σ_k exp(s_k / τ)

τ is the temperature. τ = 1 is the model as trained; a small τ sharpens the distribution and, as τ → 0, puts
everything on the largest logit; a large τ flattens it towards 1 / V. Adding a constant to every logit
changes nothing, so the largest is subtracted first and exp never overflows.

The loss of one prediction is the negative logarithm of the probability that the true token y received:

    ℓ = -log p_y = log Σ_k exp(s_k) - s_y        (in nats, at τ = 1)

Two gradients are needed everywhere else. That of softmax, for an upstream gradient dp = dL/dp, is

    dL/ds_j = p_j (dp_j - Σ_k p_k dp_k) / τ

and softmax followed by cross-entropy is simpler than either: dℓ/ds = p - onehot(y).
"""

import numpy as np


def softmax(logits: np.ndarray, temperature: float = 1.0) -> np.ndarray:
    """Probabilities (..., V) of logits (..., V), normalised over the last axis.

    temperature 0 is the limit: probability 1 for the largest logit (the first in a tie), not a division.
    A logit of -inf gets probability 0 exactly, which is how attention masks the future.
    Raises ValueError for a negative or non-finite temperature.
    """
    if not 0 <= temperature < np.inf:
        raise ValueError(f"temperature must be finite and >= 0, got {temperature}")
    logits = np.asarray(logits, dtype=np.float64)
    if temperature == 0:
        return np.eye(logits.shape[-1])[logits.argmax(axis=-1)]
    # Subtract before dividing: the exponents are then at most 0 however small the temperature is.
    exponentials = np.exp((logits - logits.max(axis=-1, keepdims=True)) / temperature)
    return exponentials / exponentials.sum(axis=-1, keepdims=True)


def softmax_gradient(p: np.ndarray, dp: np.ndarray, temperature: float = 1.0) -> np.ndarray:
    """dL/ds (..., V) from the probabilities p = softmax(s / τ) and dp = dL/dp, both (..., V)."""
    return p * (dp - (p * dp).sum(axis=-1, keepdims=True)) / temperature


def cross_entropy(logits: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """Negative log-likelihood (...) in nats of each target: logits (..., V), targets (...) of token ids."""
    logits = np.asarray(logits, dtype=np.float64)
    shifted = logits - logits.max(axis=-1, keepdims=True)
    log_normaliser = np.log(np.exp(shifted).sum(axis=-1))
    return log_normaliser - np.take_along_axis(shifted, np.asarray(targets)[..., None], axis=-1)[..., 0]


def cross_entropy_gradient(logits: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """dℓ/ds = softmax(s) - onehot(y), one row (V,) per prediction; same arguments as `cross_entropy`."""
    logits = np.asarray(logits, dtype=np.float64)
    return softmax(logits) - np.eye(logits.shape[-1])[np.asarray(targets)]
