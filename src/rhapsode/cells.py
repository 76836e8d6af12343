"""The recurrent part of the models: the course's Elman cell, a gated one, and the network over all timesteps.

B batch, T tokens in this call, H hidden. The equations stand at the top of model.py.
"""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from rhapsode.fold import side_by_side
from rhapsode.kernels.gated import gated_recurrence
from rhapsode.kernels.recurrence import recurrence

CELLS = ("elman", "gated", "none")
LONGEST_MEMORY = 128  # steps over which the slowest entry of a fresh gated cell remembers


class RNNCell(nn.Module):
    """One step of the recurrence, h_t = phi(W_ih i_t + b_ih + W_hh h_{t-1} + b_hh); holds its parameters."""

    def __init__(self, input_dim: int, hidden_dim: int, activation: str = "relu") -> None:
        super().__init__()
        self.i2h = nn.Linear(input_dim, hidden_dim)
        self.h2h = nn.Linear(hidden_dim, hidden_dim)
        self.activation: nn.Module = nn.ReLU() if activation == "relu" else nn.Tanh()

    def forward(self, input: Tensor, hidden_state: Tensor) -> Tensor:
        """input (B, input_dim), hidden_state (B, H) -> the next hidden state (B, H)."""
        return self.activation(self.i2h(input) + self.h2h(hidden_state))

    def project(self, input: Tensor) -> Tensor:
        """What a step's input adds to the recurrence, both biases included: (..., input_dim) -> (..., H)."""
        return F.linear(input, self.i2h.weight, self.i2h.bias + self.h2h.bias)

    def recur(self, x: Tensor, initial: Tensor | None) -> Tensor:
        """Projected inputs x (T, B, H), whose memory the hidden states take -> hidden states (T, B, H)."""
        weight = self.h2h.weight.to(x.dtype)  # another one only where products are made in bfloat16
        return recurrence(x, weight, initial, activation_of(self), overwrite=True)


class GatedCell(nn.Module):
    """One step of the gated recurrence, in which an entry meets no other; holds its parameters.

    h_t = a_t h_{t-1} + (1 - a_t) (W_c i_t + b_c), a_t = sigmoid(W_a i_t + b_a): how much of itself an entry keeps is
    decided by the input alone (minGRU: Feng et al., "Were RNNs all we needed?", 2024, with a = 1 - z). In a fresh cell
    some entries remember for two steps, some for LONGEST_MEMORY, and the others for times between, evenly in their
    logarithm (after Tallec and Ollivier, "Can recurrent neural networks warp time?", 2018, who draw them at random).
    """

    def __init__(self, input_dim: int, hidden_dim: int) -> None:
        super().__init__()
        self.candidate = nn.Linear(input_dim, hidden_dim)
        self.keep = nn.Linear(input_dim, hidden_dim)
        with torch.no_grad():  # 1 / (1 - a) steps
            self.keep.bias.copy_(torch.linspace(0.0, math.log(LONGEST_MEMORY - 1), hidden_dim))

    def forward(self, input: Tensor, hidden_state: Tensor) -> Tensor:
        """input (B, input_dim), hidden_state (B, H) -> the next hidden state (B, H)."""
        return torch.lerp(self.candidate(input), hidden_state, self.keep(input).sigmoid())

    def project(self, input: Tensor) -> Tensor:
        """What a step's input decides: W_a i + b_a and W_c i + b_c side by side, (..., input_dim) -> (..., 2 H)."""
        if torch.is_grad_enabled():  # one product, whose gradient to the input is one too; elsewhere joining costs more
            return F.linear(input, *side_by_side((self.keep, self.candidate)))
        return torch.cat((self.keep(input), self.candidate(input)), dim=-1)

    def recur(self, x: Tensor, initial: Tensor | None) -> Tensor:
        """Projected inputs x (T, B, 2 H), whose memory is used -> hidden states (T, B, H)."""
        return gated_recurrence(x, initial, overwrite=True)


class RNN(nn.Module):
    """A recurrence, its cell elman or gated, with an output projection, over all timesteps of a call at once.

    With gate=True the hidden state is multiplied by silu(W_g i_t + b_g) before the projection.
    """

    def __init__(
        self, input_dim: int, hidden_dim: int, output_dim: int, activation: str, gate: bool = False, cell: str = "elman"
    ) -> None:
        super().__init__()
        elman = cell == "elman"
        self.cell = RNNCell(input_dim, hidden_dim, activation) if elman else GatedCell(input_dim, hidden_dim)
        self.out = nn.Linear(hidden_dim, output_dim)
        self.gate = nn.Linear(input_dim, hidden_dim) if gate else None

    def forward(self, sequence: Tensor, initial: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """sequence (B, T, input_dim), initial hidden state (B, H) or None for zero.

        Returns (hidden states (B, T, H), outputs (B, T, output_dim)).
        """
        i = sequence.transpose(0, 1)  # (T, B, input_dim)
        h = self.cell.recur(self.cell.project(i), initial)
        y = self.out(h if self.gate is None else h * F.silu(self.gate(i)))
        return h.transpose(0, 1), y.transpose(0, 1)


def activation_of(cell: RNNCell) -> str:
    """The name of a cell's activation; ValueError for one that the recurrence does not compute."""
    name = {nn.ReLU: "relu", nn.Tanh: "tanh"}.get(type(cell.activation))
    if name is None:
        raise ValueError(f"the activation must be ReLU or Tanh, got {type(cell.activation).__name__}")
    return name
