"""The probabilities of a split and everything computed from them exactly: entropy and expected length.

    P(story) = P(skeleton) · prod_facts P(value | parents) · prod_choices weight / total

Facts and wordings of a skeleton form a Bayesian network in which wordings depend on nothing, so that the
chain rule gives the entropy in closed form; docs/storyworld.md has the derivation.
"""

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from rhapsode.storyworld.grammar import Grammar, Skeleton, Variable, held_out_combination, is_allowed
from rhapsode.storyworld.template import Choice, Literal, Mention, Wording

SPLITS = ("train", "valid", "held_out_skeletons", "held_out_combinations")

_Network = tuple[tuple[str, tuple[str, ...]], ...]  # facts, each with its parents


@dataclass(frozen=True)
class Entropy:
    """The entropy of a split's stories, in nats, with the expected lengths that turn it into rates."""

    nats_per_story: float
    bytes_per_story: float
    words_per_story: float

    @property
    def bits_per_story(self) -> float:
        return self.nats_per_story / math.log(2)

    @property
    def bits_per_byte(self) -> float:
        """Entropy over expected bytes: the floor of the mean loss per byte over many stories."""
        return self.bits_per_story / self.bytes_per_story

    @property
    def bits_per_word(self) -> float:
        return self.bits_per_story / self.words_per_story

    @property
    def nats_per_byte(self) -> float:
        return self.nats_per_story / self.bytes_per_story

    @property
    def nats_per_word(self) -> float:
        return self.nats_per_story / self.words_per_story


class Distribution:
    """What a split draws from: its skeletons with their weights, and the table of each fact."""

    def __init__(self, grammar: Grammar, split: str):
        if split not in SPLITS:
            raise ValueError(f"split must be one of {', '.join(SPLITS)}; got {split!r}")
        self.split = split
        self.grammar = grammar
        self._tables: dict[tuple[str, ...], np.ndarray] = {}
        self._networks: dict[tuple[Skeleton, str, frozenset[str]], _Network] = {}
        self._conditionals: dict[tuple[_Network, tuple[tuple[str, int], ...]], np.ndarray] = {}

        def belongs(skeleton: Skeleton) -> bool:
            if split == "held_out_skeletons" or skeleton.held_out:
                return skeleton.held_out and split == "held_out_skeletons"
            return split != "held_out_combinations" or any(_combined(skeleton))

        self.skeletons = tuple(skeleton for skeleton in grammar.skeletons if belongs(skeleton))
        if not self.skeletons:
            raise ValueError(f"no skeleton belongs to the split {split!r}")
        self.weights = np.array([skeleton.weight for skeleton in self.skeletons], dtype=np.int64)

    def weights_of(self, variable: Variable, parents: tuple[Variable, ...]) -> np.ndarray:
        """Integer weights of a fact's values: (*sizes of the parents' domains, size of its own).

        Combinations kept out of training have weight 0 in every split but held_out_combinations, which has
        only them. Rows are normalised by their own sums, so what is left is a distribution in every row.
        """
        key = (variable.name, *(parent.name for parent in parents))
        if key not in self._tables:
            table = np.empty([len(parent.domain) for parent in (*parents, variable)], dtype=np.int64)
            base = np.array(variable.domain.weights)
            if variable.only:
                base = base * np.array([cell == "yes" for cell in variable.domain.properties[variable.only]])
            for index in np.ndindex(*table.shape[:-1]):
                row = base.copy()
                for parent, given in zip(parents, index, strict=True):
                    row *= [is_allowed(variable, value, parent, given) for value in range(len(base))]
                    if parent.name == variable.combined_with:
                        wanted = self.split == "held_out_combinations"
                        row *= [held_out_combination(value, given) == wanted for value in range(len(base))]
                table[index] = row
            self._tables[key] = table
        return self._tables[key]

    def joint(self, skeleton: Skeleton, names: tuple[str, ...]) -> np.ndarray:
        """Exact joint probabilities of the named facts, axes in that order; ancestors are summed out."""
        by_name = {variable.name: variable for variable in skeleton.variables}
        closure = _reach(names, {v.name: [p.name for p in skeleton.parents(v)] for v in skeleton.variables})
        axes = {name: axis for axis, name in enumerate(sorted(closure))}
        operands: list[object] = []
        for name in closure:
            parents = skeleton.parents(by_name[name])
            operands.append(self._shares(by_name[name], parents))
            operands.append([axes[parent.name] for parent in parents] + [axes[name]])
        result = [axes[name] for name in names]
        return np.einsum(*operands, result, optimize="greedy")  # type: ignore[call-overload]

    def conditional(self, skeleton: Skeleton, name: str, known: Mapping[str, int]) -> np.ndarray:
        """P(fact | facts known) in a skeleton, all others summed out: float64 (size of its domain,).

        known: fact -> value, in any order of telling: a fact may be known before its parents are. Zeros where the
        skeleton cannot have what is known.
        """
        network = self._network(skeleton, name, frozenset(known))
        key = (network, tuple((given, known[given]) for given, _ in network if given in known))
        if key not in self._conditionals:
            by_name = {variable.name: variable for variable in skeleton.variables}
            axes = {given: axis for axis, (given, _) in enumerate(network)}
            operands: list[object] = []
            for given, parents in network:
                table = self._shares(by_name[given], tuple(by_name[parent] for parent in parents))
                free = [other for other in (*parents, given) if other not in known]
                place = tuple(known.get(other, slice(None)) for other in (*parents, given))
                operands += [table[place], [axes[other] for other in free]]
            joint = np.einsum(*operands, [axes[name]], optimize="greedy")  # type: ignore[call-overload]
            total = joint.sum()
            self._conditionals[key] = joint / total if total > 0 else joint
        return self._conditionals[key]

    def _network(self, skeleton: Skeleton, name: str, known: frozenset[str]) -> _Network:
        """The facts that P(fact | known) depends on, each with its parents; the fact itself comes first."""
        key = (skeleton, name, known)
        if key not in self._networks:
            parents = {v.name: tuple(parent.name for parent in skeleton.parents(v)) for v in skeleton.variables}
            # Ancestors of what is asked and known; of these, those that a path joins to what is asked.
            ancestors = _reach({name, *(known & parents.keys())}, parents)
            links: dict[str, set[str]] = {each: set() for each in ancestors}
            for child in ancestors:
                for parent in parents[child]:
                    links[child].add(parent)
                    links[parent].add(child)
            joined = _reach({name}, links)
            self._networks[key] = ((name, parents[name]), *((n, parents[n]) for n in parents if n in joined - {name}))
        return self._networks[key]

    def _shares(self, variable: Variable, parents: tuple[Variable, ...]) -> np.ndarray:
        """`weights_of` with each row divided by its sum: P(value | parents)."""
        weights = self.weights_of(variable, parents).astype(np.float64)
        totals = weights.sum(axis=-1, keepdims=True)
        # Rows without any value belong to parents' values that cannot occur (a kind that is no hero's).
        return np.divide(weights, totals, out=np.zeros_like(weights), where=totals > 0)

    def fact_entropy(self, skeleton: Skeleton) -> float:
        """Sum over the skeleton's facts of H(value | parents), in nats."""
        total = 0.0
        for variable in skeleton.variables:
            parents = skeleton.parents(variable)
            joint = self.joint(skeleton, (*(parent.name for parent in parents), variable.name))
            given = joint.sum(axis=-1, keepdims=True)
            conditional = np.divide(joint, given, out=np.ones_like(joint), where=joint > 0)
            total -= float((joint * np.log(conditional)).sum())
        return total

    def expected(self, skeleton: Skeleton, measure: Callable[[str], int]) -> float:
        """Expected sum of `measure` over the fragments of the skeleton's stories."""
        marginals = {v.name: self.joint(skeleton, (v.name,)) for v in skeleton.variables}

        def of(wording: Wording) -> float:
            return math.fsum(of_element(element) for element in wording)

        def of_element(element: Literal | Mention | Choice) -> float:
            if isinstance(element, Literal):
                return measure(element.text)
            if isinstance(element, Mention):
                return float(marginals[element.variable] @ [measure(text) for text in element.texts])
            weighted = zip(element.weights, element.options, strict=True)
            return math.fsum(weight * of(option) for weight, option in weighted) / element.total

        return math.fsum(of(scene.slots) for scene in skeleton.scenes)

    @cached_property
    def entropy(self) -> Entropy:
        """H(text): equal to the entropy of the derivation, because every text has exactly one."""
        nats = byte_count = words = 0.0
        for skeleton, weight in zip(self.skeletons, self.weights, strict=True):
            share = float(weight / self.weights.sum())
            wording = math.fsum(choice_entropy(slot) for scene in skeleton.scenes for slot in scene.slots)
            nats += share * (self.fact_entropy(skeleton) + wording - math.log(share))
            byte_count += share * self.expected(skeleton, lambda text: len(text.encode()))
            words += share * self.expected(skeleton, lambda text: len(text.split()))
        return Entropy(nats, byte_count, words)


def _reach(start: Iterable[str], links: Mapping[str, Iterable[str]]) -> set[str]:
    """All that can be reached along the links, the start included."""
    found = set(start)
    while grown := {other for name in found for other in links[name]} - found:
        found |= grown
    return found


def _combined(skeleton: Skeleton) -> list[str]:
    names = {variable.name for variable in skeleton.variables}
    return [variable.name for variable in skeleton.variables if variable.combined_with in names]


def choice_entropy(choice: Choice) -> float:
    """Entropy in nats of a choice and of the choices inside its options: H = sum_i p_i (-log p_i + H_i)."""
    total = 0.0
    for weight, option in zip(choice.weights, choice.options, strict=True):
        inner = math.fsum(choice_entropy(element) for element in option if isinstance(element, Choice))
        total += weight / choice.total * (inner - math.log(weight / choice.total))
    return total
