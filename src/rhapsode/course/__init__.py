"""The course's program on the fast kernels: its names, its files, its protocol; `rnn.py` is the door to it.

The model is the plain model of `rhapsode.model`, equation by equation, behind the interface of the course: `step`
beside `forward`, weights that may be replaced from outside, `train` with any loss and any optimizer.

    model.py        RNNCell, RNN, SelfAttention, RNNLanguageModel (HybridLanguageModel from spring 2026 on)
    tokenizer.py    the tokenizer folder as the course's program reads it
    data.py         SentenceDataset, and what is wrong with a data file
    training.py     train, validate
    program.py      main, train_mod, generate, complete, the files they write
    commandline.py  the command line of every semester
    weights.py      model.pt read safely, and turned into a plain model
"""

from rhapsode.course.commandline import command
from rhapsode.course.data import SentenceDataset
from rhapsode.course.model import RNN, HybridLanguageModel, RNNCell, RNNLanguageModel, SelfAttention
from rhapsode.course.program import DEVICE, complete, generate, keep_last_run_in, main, train_mod
from rhapsode.course.tokenizer import AutoTokenizer, CourseTokenizer
from rhapsode.course.training import train, validate
from rhapsode.course.weights import let_torch_load, load_course_model, plain_parts

__all__ = [
    "DEVICE",
    "RNN",
    "AutoTokenizer",
    "CourseTokenizer",
    "HybridLanguageModel",
    "RNNCell",
    "RNNLanguageModel",
    "SelfAttention",
    "SentenceDataset",
    "command",
    "complete",
    "generate",
    "keep_last_run_in",
    "let_torch_load",
    "load_course_model",
    "main",
    "plain_parts",
    "train",
    "train_mod",
    "validate",
]
