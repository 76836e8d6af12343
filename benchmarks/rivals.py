"""The rivals of a training step: the plain model's equations computed in two other ways, from the same weights.

Each takes a plain model, copies its weights, and has `loss(tokens, targets)` and `named_gradients()`, whose names are
the model's, so that both can be compared before anything is timed.
"""

import copy
import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from rhapsode.cells import RNNCell
from rhapsode.model import PlainModel


class Stepwise(nn.Module):
    """(a) The course's algorithm: one timestep after the other, then one attention step after the other.

    Hidden states and outputs are concatenated as they come; each attention step projects keys and values of the
    whole prefix again.
    """

    def __init__(self, model: PlainModel) -> None:
        super().__init__()
        self.model = copy.deepcopy(model)

    def loss(self, tokens: Tensor, targets: Tensor) -> Tensor:
        """Mean cross-entropy in nats of targets (B, T) given tokens (B, T)."""
        cell, out, attention = self.model.rnn.cell, self.model.rnn.out, self.model.attention
        embedded = self.model.embeddings(tokens)
        batch, length, hidden_dim = *tokens.shape, out.in_features
        hidden = embedded.new_zeros(batch, hidden_dim)
        hidden_states = outputs = embedded.new_empty(batch, 0, hidden_dim)
        for t in range(length):
            hidden = cell(embedded[:, t], hidden)
            hidden_states = torch.cat((hidden_states, hidden[:, None]), dim=1)
            outputs = torch.cat((outputs, out(hidden)[:, None]), dim=1)
        attended = []
        for t in range(length):
            prefix = outputs[:, : t + 1]
            q, k, v = (
                attention.query_transform(prefix[:, -1]),
                attention.key_transform(prefix),
                attention.value_transform(prefix),
            )
            scores = (k @ q[:, :, None]).squeeze(2) / math.sqrt(q.shape[1])
            attended.append(attention.output_transform((scores.softmax(1)[:, None] @ v).squeeze(1)))
        logits = self.model.lm_head(torch.stack(attended, dim=1))
        return F.cross_entropy(logits.flatten(0, 1), targets.flatten())

    def named_gradients(self) -> dict[str, Tensor | None]:
        return {name: parameter.grad for name, parameter in self.model.named_parameters()}


class PyTorchRNN(nn.Module):
    """(b) The same model on `nn.RNN`, with SDPA for attention and plain `cross_entropy`; time-major up to attention,
    which `nn.RNN` likes best."""

    def __init__(self, model: PlainModel) -> None:
        super().__init__()
        cell, config = model.rnn.cell, model.config
        assert isinstance(cell, RNNCell)
        self.rnn = nn.RNN(config.embed_dim, config.hidden_dim, nonlinearity=config.activation)
        with torch.no_grad():
            self.rnn.get_parameter("weight_ih_l0").copy_(cell.i2h.weight)
            self.rnn.get_parameter("weight_hh_l0").copy_(cell.h2h.weight)
            self.rnn.get_parameter("bias_ih_l0").copy_(cell.i2h.bias)
            self.rnn.get_parameter("bias_hh_l0").copy_(cell.h2h.bias)
        self.embeddings, self.out = copy.deepcopy(model.embeddings), copy.deepcopy(model.rnn.out)
        self.attention, self.lm_head = copy.deepcopy(model.attention), copy.deepcopy(model.lm_head)

    def loss(self, tokens: Tensor, targets: Tensor) -> Tensor:
        """Mean cross-entropy in nats of targets (B, T) given tokens (B, T)."""
        h, _ = self.rnn(self.embeddings(tokens.t()))
        y = self.out(h).transpose(0, 1)
        attention = self.attention
        q, k, v = (
            transform(y)[:, None]
            for transform in (attention.query_transform, attention.key_transform, attention.value_transform)
        )
        a = attention.output_transform(F.scaled_dot_product_attention(q, k, v, is_causal=True)[:, 0])
        return F.cross_entropy(self.lm_head(a).flatten(0, 1), targets.flatten())

    def named_gradients(self) -> dict[str, Tensor | None]:
        ours = {
            "rnn.weight_ih_l0": "rnn.cell.i2h.weight",
            "rnn.bias_ih_l0": "rnn.cell.i2h.bias",
            "rnn.weight_hh_l0": "rnn.cell.h2h.weight",
            "rnn.bias_hh_l0": "rnn.cell.h2h.bias",
            "out.weight": "rnn.out.weight",
            "out.bias": "rnn.out.bias",
        }
        return {ours.get(name, name): parameter.grad for name, parameter in self.named_parameters()}


RIVALS = {"stepwise": Stepwise, "nn.RNN": PyTorchRNN}
