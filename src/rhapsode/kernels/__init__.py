"""The inner loops, each in a plain form that reads like its equation and, beside it, a fast one.

    recurrence.py   h_t = phi(x_t + W h_{t-1}) over all t
    gated.py        h_t = a_t h_{t-1} + (1 - a_t) c_t over all t
    one_launch.py   both again, for GPUs, in Triton; recurrence_forms.py says where they run
    attention.py    causal attention, with what a cache holds in front
    norm.py         RMSNorm, squared ReLU
    loss.py         cross-entropy of a linear map, without all logits at once
    copying.py      the same, mixed with the probability that the target was copied

Which form is used is decided by the device of the tensors (`FORMS`), of a recurrence on a GPU also by its size
(`recurrence_form`). `with form("plain"):` makes all of them plain, for what cannot look into hand-written gradients:
export, graph capture, second derivatives.
"""

from rhapsode.kernels.forms import FORMS, form
from rhapsode.kernels.recurrence_forms import recurrence_form

__all__ = ["FORMS", "form", "recurrence_form"]
