"""The textbook as one page of Markdown, made of the docstrings and the worked examples.

`python -m rhapsode.textbook.chapters` prints it. The page says what the chapters say and shows what the
examples compute, so it cannot drift from the code.
"""

import inspect
import sys
from collections.abc import Callable
from types import ModuleType

from rhapsode.textbook import (
    attention,
    convolution,
    copying,
    gated,
    language_model,
    optimizer,
    pairs,
    recurrent,
    residual,
    softmax,
    stacked,
    tape,
)
from rhapsode.textbook.explain import attention as attention_examples
from rhapsode.textbook.explain import convolution as convolution_examples
from rhapsode.textbook.explain import copying as copying_examples
from rhapsode.textbook.explain import muon as muon_examples
from rhapsode.textbook.explain import pairs as pairs_examples
from rhapsode.textbook.explain import recurrent as recurrent_examples
from rhapsode.textbook.explain import residual as residual_examples
from rhapsode.textbook.explain import tape as tape_examples
from rhapsode.textbook.explain.page import WorkedExample, to_markdown

CHAPTERS: dict[ModuleType, tuple[Callable[[], WorkedExample], ...]] = {
    softmax: (attention_examples.temperature,),
    tape: (tape_examples.tape,),
    recurrent: (recurrent_examples.unrolling, recurrent_examples.backpropagation),
    convolution: (convolution_examples.convolution, convolution_examples.parameters),
    attention: (attention_examples.attention,),
    language_model: (),
    residual: (residual_examples.rmsnorm, residual_examples.residual),
    pairs: (pairs_examples.pairs,),
    gated: (),
    copying: (copying_examples.copying,),
    stacked: (),
    optimizer: (muon_examples.muon,),
}

PREFACE = """# The textbook

The mathematics of this project in plain NumPy, float64, one chapter per file of
[`src/rhapsode/textbook/`](../src/rhapsode/textbook/). It imports neither PyTorch nor the rest of the package,
and the tests hold the fast kernels against it. Each worked example can be had in the terminal, with your own
numbers, and as a page with figures: `rhapsode explain --help`.

This page is generated from the docstrings and the worked examples; `make docs` writes it again.
"""


def page() -> str:
    """All chapters: what the module's docstring says, what is in the module, and its worked examples."""
    contents = "\n".join(_contents_line(n, module) for n, module in enumerate(CHAPTERS, start=1))
    parts = [PREFACE, contents + "\n"]
    for n, (module, examples) in enumerate(CHAPTERS.items(), start=1):
        title, body = _docstring(module)
        name = module.__name__.rpartition(".")[2]
        parts.append(f"## {n}. {title}\n\n{body}\n")
        link = f"[`{name}.py`](../src/rhapsode/textbook/{name}.py)"
        parts.append(f"### In {link}\n\n{_public_names(module)}\n")
        for example in examples:
            command = f"rhapsode explain {example.__name__}"
            parts.append(to_markdown(example(), level=3) + f"\nWith your own numbers: `{command} --help`.\n")
    return "\n".join(parts)


def _docstring(module: ModuleType) -> tuple[str, str]:
    """The first line without its full stop, and the rest; its indented equations are code in Markdown too."""
    title, _, body = inspect.cleandoc(module.__doc__ or "").partition("\n\n")
    return title.rstrip("."), body


def _contents_line(n: int, module: ModuleType) -> str:
    title, _ = _docstring(module)
    anchor = "".join(c for c in f"{n}. {title}".lower() if c.isalnum() or c in " -").replace(" ", "-")
    return f"{n}. [{title}](#{anchor})"


def _public_names(module: ModuleType) -> str:
    """A list of the classes and functions that the module defines, in its order, each with its docstring."""
    lines = []
    for name, value in vars(module).items():
        if name.startswith("_") or getattr(value, "__module__", None) != module.__name__:
            continue
        paragraphs = inspect.cleandoc(value.__doc__ or "").split("\n\n")
        description = "\n\n".join(f"  {' '.join(paragraph.split())}" for paragraph in paragraphs).lstrip()
        lines.append(f"- `{name}{'' if inspect.isclass(value) else _arguments(value)}`: {description}")
    return "\n".join(lines)


def _arguments(function: Callable[..., object]) -> str:
    """The signature without types: the docstrings give shapes, which say more."""
    signature = inspect.signature(function)
    bare = [p.replace(annotation=inspect.Parameter.empty) for p in signature.parameters.values()]
    return str(signature.replace(parameters=bare, return_annotation=inspect.Signature.empty))


if __name__ == "__main__":
    sys.stdout.buffer.write(page().encode("utf-8"))
