"""The grammar in the package: the rules of `facts`, and the text files beside this module."""

import hashlib
from functools import cache
from importlib.resources import files

from rhapsode.storyworld.facts import VARIABLES
from rhapsode.storyworld.grammar import Grammar, Scene, read_scenes, read_skeletons

# To be raised when a change of code gives a seed another story, which test_ten_golden_stories notices.
GENERATOR_VERSION = 1


@cache
def load_grammar() -> Grammar:
    """The grammar that ships in the package."""
    folder = files("rhapsode.storyworld") / "text"
    scenes: dict[str, Scene] = {}
    for entry in sorted(folder.iterdir(), key=lambda entry: entry.name):
        if entry.name.startswith("scenes"):
            scenes |= read_scenes(entry.read_text("utf-8"), VARIABLES, entry.name)
    skeletons = (folder / "skeletons.txt").read_text("utf-8")
    return Grammar(VARIABLES, read_skeletons(skeletons, scenes, VARIABLES, "skeletons.txt"))


@cache
def fingerprint() -> str:
    """SHA-256 of all that decides which story a seed has: the text files, the facts' rules, the generator's version."""
    digest = hashlib.sha256(f"{GENERATOR_VERSION}".encode())
    for entry in sorted((files("rhapsode.storyworld") / "text").iterdir(), key=lambda entry: entry.name):
        digest.update(f"\n{entry.name}\n{entry.read_text('utf-8')}".encode())
    for fact in load_grammar().variables.values():
        rules = (fact.only, fact.differs, fact.fits, fact.avoids, fact.combined_with)
        digest.update(f"\n{fact.name} {fact.domain.name} {rules}".encode())
    return digest.hexdigest()
