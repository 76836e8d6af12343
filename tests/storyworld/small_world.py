"""A grammar small enough that all its stories can be listed: the oracle of what storyworld computes in closed form."""

import itertools
import math
from collections import defaultdict

from rhapsode.storyworld.distribution import Distribution
from rhapsode.storyworld.grammar import Grammar, Variable, read_domains, read_scenes, read_skeletons
from rhapsode.storyworld.sampling import decisions, log_product
from rhapsode.storyworld.story import Derivation, realise
from rhapsode.storyworld.template import Choice, Wording

WORDS = """
domain beast: it | cry:sound | =size | weight
cow | Moo | big | 3
ape | Oo | big | 1
hen | Cluck | small | 2

domain thing: it | =size | weight
old barn | big | 2
egg | small | 3
ox cart | big | 1
"""

SCENES = """
scene ^start
Once there was {a x}.
2* There were {a x} and {a y}, [both|all two] of them [glad|so very sad|sad].
"{Y}!" said {a x}.

scene +middle
The {x} [saw|ate] {a z}.
{x.Cry}, said the {x} to the {z}.

scene end
The {z} was [red|blue].
5* [Gone|Lost] was the {z}.

scene stop
Nobody [knew|cared].
The end.
"""

SIMPLE = SCENES.replace("Once there was {a x}.\n", "")  # it leaves y untold

SKELETONS = """
long 3: start middle end
short 2: start stop
other 1: start middle stop
"""


def small_grammar(scenes: str = SCENES, skeletons: str = SKELETONS) -> Grammar:
    domains = read_domains(WORDS, "words")
    variables = {
        "x": Variable("x", domains["beast"]),
        "y": Variable("y", domains["beast"], differs=("x",)),
        "z": Variable("z", domains["thing"], fits=(("x", "size"),)),
    }
    read = read_scenes(scenes, variables, "scenes")
    return Grammar(variables, read_skeletons(skeletons, read, variables, "skeletons"))


def all_derivations(grammar: Grammar) -> list[Derivation]:
    """Every skeleton, every assignment of values and every set of options, possible or not."""

    def options(wording: Wording, base: int) -> list[dict[int, int]]:
        found: list[dict[int, int]] = [{}]
        for element in wording:
            if isinstance(element, Choice):
                mine = [
                    {base + element.index: number, **inner}
                    for number, option in enumerate(element.options)
                    for inner in options(option, base)
                ]
                found = [{**before, **after} for before in found for after in mine]
        return found

    derivations = []
    for skeleton in grammar.skeletons:
        per_scene = [options(scene.slots, 1024 * place) for place, scene in enumerate(skeleton.scenes)]
        names = [variable.name for variable in skeleton.variables]
        sizes = [range(len(variable.domain)) for variable in skeleton.variables]
        for values in itertools.product(*sizes):
            for chosen in itertools.product(*per_scene):
                merged = {number: option for each in chosen for number, option in each.items()}
                derivations.append(Derivation(skeleton, dict(zip(names, values, strict=True)), merged))
    return derivations


def text_of(derivation: Derivation) -> str:
    return "".join(fragment.text for fragment in realise(derivation))


def probabilities(grammar: Grammar) -> dict[str, float]:
    """P(text), by enumeration."""
    distribution = Distribution(grammar, "train")
    table: dict[str, float] = defaultdict(float)
    for derivation in all_derivations(grammar):
        table[text_of(derivation)] += math.exp(log_product(decisions(distribution, derivation)))
    return {text: probability for text, probability in table.items() if probability > 0}
