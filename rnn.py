"""The course's door to Rhapsode, for every semester: `python3 rnn.py ...`, or `from rnn import *`.

    rnn.py --train_data F --val_data F ...      autumn 2024, spring 2025; also `rnn.py F F ...`
    rnn.py train --train_data F ...             from autumn 2025 on
    rnn.py generate --model_path P --prefix S ...

Everything is in `rhapsode.course`; docs/course.md says what each semester is served.
"""

# ruff: noqa: F401  (all of these are what `from rnn import *` brings)
import json
import sys as _sys
import time
from typing import Optional

import torch
from torch import Tensor, nn, optim

torch.manual_seed(10601)

from rhapsode import course as _course  # noqa: E402
from rhapsode.course import (  # noqa: E402
    DEVICE,
    RNN,
    AutoTokenizer,
    HybridLanguageModel,
    RNNCell,
    RNNLanguageModel,
    SelfAttention,
    SentenceDataset,
    complete,
    generate,
    main,
    train,
    train_mod,
    validate,
)

device = DEVICE
_course.let_torch_load()
_course.keep_last_run_in(globals())  # `lm` and `tokenizer`, after a run

if __name__ == "__main__":
    _sys.exit(_course.command(_sys.argv[1:]))
