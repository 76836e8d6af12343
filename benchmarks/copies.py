"""One story as a model with a copy head writes it, in which each copied word points to where it was copied from.

rhapsode train storyworld --preset minute --tokens 2400000 --out runs/copying
python benchmarks/copies.py runs/copying                 writes docs/copies.md and docs/figures/copies.svg
python benchmarks/copies.py runs/copying --seed 3 --prompt "Once upon a time"
"""

import argparse
import statistics
import textwrap
from collections import Counter
from pathlib import Path

from report import FIGURES, HERE, about

import rhapsode
from rhapsode.inspection import draw_copies
from rhapsode.inspection.copying import CopiedWord, copied_words
from rhapsode.results import CopyMap

PAGE = HERE.parent / "docs" / "copies.md"
MOST_ROWS = 12


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("--prompt", default="")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--temperature", type=float, default=0.5)
    parser.add_argument("--tokens", type=int, default=400, help="at most so many")
    arguments = parser.parse_args()
    model = rhapsode.load(arguments.run, device="cpu")
    how = {"seed": arguments.seed, "temperature": arguments.temperature, "max_tokens": arguments.tokens}
    text = str(model.generate(arguments.prompt, **how)[0])
    copies = model.copies(text)
    if all(word.source is None for word in copied_words(copies)):
        raise SystemExit("no word of this story was copied; try another --seed, or a model that trained for longer")
    draw_copies(copies, FIGURES / "copies.svg")
    PAGE.write_text(page(model, copies, arguments), encoding="utf-8")
    print(f"wrote {PAGE} and {FIGURES / 'copies.svg'}")


def page(model: rhapsode.Model, copies: CopyMap, arguments: argparse.Namespace) -> str:
    """The page around the figure, with what the story's words say in numbers."""
    words = copied_words(copies)
    pairs = [(number, word.source) for number, word in enumerate(words) if word.source is not None]
    distances = [number - source for number, source in pairs]
    again = Counter(bare for bare in map(bare_of, words) if bare)
    copied = Counter(bare_of(words[number]) for number, _ in pairs)
    rows = [
        f"| {word} | {again[word] - 1} | {count} |"
        for word, count in copied.most_common(MOST_ROWS)
        if again[word] > 1  # a word whose parts were copied from other words stands there once
    ]
    recipe, found, last = model.recipe, about(), model.metrics[-1]
    assert recipe is not None
    prompt = f", after the prompt {arguments.prompt!r}" if arguments.prompt else ""
    parts = [
        "# What a model copies",
        "A story as a model with a copy head ([model.md](model.md#the-copy-head)) wrote it. Each word that is more"
        " likely to have been copied than chosen from the vocabulary is bold and points to the word that it was copied"
        " from; a word and all that goes back to it have one colour.",
        "![A story in which each copied word points to where it was copied from](figures/copies.svg)",
        f"Of {sum(again.values())} words {len(pairs)} were copied, from {statistics.mean(distances):.0f} words before"
        f" on average and {max(distances)} at most.",
        "\n".join(["| word | stands there again | copied |", "|---|---|---|", *rows]),
        f"The model trained for {last['seconds']:.0f} seconds, {last['step']:,} steps, on {found['machine']} (commit"
        f" {found['commit']}), with copy_dim {recipe.model.copy_dim}, embed_dim {recipe.model.embed_dim} and hidden_dim"
        f" {recipe.model.hidden_dim}. The story is sample {arguments.seed} at temperature"
        f" {arguments.temperature:g}{prompt}. The same of any text and model: `rhapsode inspect RUN --text TEXT` saves"
        " `copies.svg`. This page is written by `benchmarks/copies.py`.",
    ]
    return "\n\n".join(part if part[0] in "#!|" else textwrap.fill(part, 120) for part in parts) + "\n"


def bare_of(word: CopiedWord) -> str:
    """The word without what stands around it; empty where it has no letter."""
    return word.text.replace("▁", "").replace("\\n", "") if any(c.isalpha() for c in word.text) else ""


if __name__ == "__main__":
    main()
