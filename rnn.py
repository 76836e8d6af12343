"""The course's door to Rhapsode: `python3 rnn.py --train_data F --val_data F ...`, or `from rnn import *`.

Everything is in `rhapsode.course`; `python3 rnn.py --help` lists the flags.
"""

import sys

import torch
from torch import nn

from rhapsode.course import (
    RNN,
    RNNCell,
    RNNLanguageModel,
    SelfAttention,
    SentenceDataset,
    command,
    complete,
    main,
    train,
    validate,
)

__all__ = [
    "RNN",
    "RNNCell",
    "RNNLanguageModel",
    "SelfAttention",
    "SentenceDataset",
    "complete",
    "main",
    "nn",
    "torch",
    "train",
    "validate",
]

torch.manual_seed(10601)

if __name__ == "__main__":
    sys.exit(command(sys.argv[1:]))
