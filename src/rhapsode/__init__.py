"""Rhapsode: small recurrent language models with self-attention, on the computer that you already have.

    import rhapsode

    model = rhapsode.train("my_stories.txt", minutes=1)
    print(model.generate("Once upon a time")[0])

docs/python.md has the rest. A name is imported when it is first used: `import rhapsode` waits for nothing.
"""

from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from rhapsode.api import check as check
    from rhapsode.api import evaluate as evaluate
    from rhapsode.api import explain_preset as explain_preset
    from rhapsode.api import export_html as export_html
    from rhapsode.api import import_course_model as import_course_model
    from rhapsode.api import load as load
    from rhapsode.api import study as study
    from rhapsode.api import train as train
    from rhapsode.preparing import prepare_store as prepare_store
    from rhapsode.recipe import Recipe as Recipe
    from rhapsode.results import Completion as Completion
    from rhapsode.state import State as State
    from rhapsode.trained import Model as Model

_HOMES = {
    **dict.fromkeys(
        ("check", "evaluate", "explain_preset", "export_html", "import_course_model", "load", "study", "train"),
        "rhapsode.api",
    ),
    "Completion": "rhapsode.results",
    "Model": "rhapsode.trained",
    "Recipe": "rhapsode.recipe",
    "State": "rhapsode.state",
    "prepare_store": "rhapsode.preparing",
}
__all__ = ["__version__", *sorted(_HOMES)]


if not TYPE_CHECKING:  # a checker would take any name for one

    def __getattr__(name: str) -> Any:
        if name not in _HOMES:
            raise AttributeError(f"module 'rhapsode' has no attribute {name!r}")
        from importlib import import_module

        value = globals()[name] = getattr(import_module(_HOMES[name]), name)
        return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOMES})
