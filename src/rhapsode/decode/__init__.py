"""Writing: how the next token is chosen, and how a text goes on.

config.py         how text is drawn, as a value
requests.py       what is asked of an engine, and what it says
engine.py         requests join and leave one running batch; prefixes; what each gets depends on nothing else
continuation.py   from beginning to end: write, read, score
ending.py         text as it becomes certain, stop texts, limits
prefixes.py       beginnings of texts that were read before, bounded and counted
kernel.py         a model packed for the C kernel (native/), which compiled.py compiles
texts.py          the memory of texts that the kernel reads and continues
modules.py        the same by the model's own modules, where there is no compiler
choice.py         how a token is chosen, the plain form: filters.py, and a number of the text's own generator
"""

from rhapsode.decode.config import SampleConfig
from rhapsode.decode.continuation import read_ids, read_text, score_ids, write, write_texts
from rhapsode.decode.engine import Engine
from rhapsode.decode.requests import (
    Alternative,
    Counters,
    Failed,
    GenerationRequest,
    Happening,
    PromptRead,
    TokenScore,
    Written,
    prompt_ids,
    samples,
)

__all__ = [
    "Alternative",
    "Counters",
    "Engine",
    "Failed",
    "GenerationRequest",
    "Happening",
    "PromptRead",
    "SampleConfig",
    "TokenScore",
    "Written",
    "prompt_ids",
    "read_ids",
    "read_text",
    "samples",
    "score_ids",
    "write",
    "write_texts",
]
