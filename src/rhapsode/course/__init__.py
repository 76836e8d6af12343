"""The course's program on the fast kernels: its names, its files, its protocol; `rnn.py` is the door to it.

The model is the plain model of `rhapsode.model`, equation by equation, behind the interface of the course: `step`
beside `forward`, weights that may be replaced from outside, `train` with any loss and any optimizer.

    model.py      RNNCell, RNN, SelfAttention, RNNLanguageModel
    data.py       SentenceDataset, and what is wrong with a data file
    training.py   train, validate
    program.py    main, complete, the command line, the files it writes
    weights.py    model.pt read safely, and turned into a plain model
"""

from rhapsode.course.data import SentenceDataset
from rhapsode.course.model import RNN, RNNCell, RNNLanguageModel, SelfAttention
from rhapsode.course.program import command, complete, main
from rhapsode.course.training import train, validate
from rhapsode.course.weights import load_course_model, plain_parts

__all__ = [
    "RNN",
    "RNNCell",
    "RNNLanguageModel",
    "SelfAttention",
    "SentenceDataset",
    "command",
    "complete",
    "load_course_model",
    "main",
    "plain_parts",
    "train",
    "validate",
]
