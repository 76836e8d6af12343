"""Drawing stories: one at a time with everything known about them, or many at once as fragments.

The generator is SplitMix64 (Steele, Lea and Flood 2014) used as a function of (seed, split, number of the
draw): no state, so that any story can be drawn alone, in any order, in Python integers or in NumPy, with
the same result everywhere. A draw below `total` takes 52 bits: floor(bits · total / 2^52), exact to one
part in 2^40 for the totals that occur, which are checked to stay below 4096.
"""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from rhapsode.storyworld.distribution import SPLITS, Distribution
from rhapsode.storyworld.grammar import Scene, Skeleton, Variable
from rhapsode.storyworld.story import CHOICES_PER_SCENE, Decision, Derivation
from rhapsode.storyworld.template import Choice, Literal, Mention, Wording

MASK = (1 << 64) - 1
GAMMA, FIRST, SECOND = 0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB
# Draws of a story are numbered: its skeleton 0, facts from 1, choices from FIRST_CHOICE.
FIRST_CHOICE = 1024
LARGEST_TOTAL = 4096


def _mix(z: int) -> int:
    z = ((z ^ (z >> 30)) * FIRST) & MASK
    z = ((z ^ (z >> 27)) * SECOND) & MASK
    return z ^ (z >> 31)


def _mix_array(z: np.ndarray) -> np.ndarray:
    z = (z ^ (z >> np.uint64(30))) * np.uint64(FIRST)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(SECOND)
    return z ^ (z >> np.uint64(31))


def _key(seed: int, split: str) -> int:
    if not 0 <= seed <= MASK:
        raise ValueError(f"seed must be from 0 to 2^64 - 1, got {seed}")
    return _mix((_mix((seed * GAMMA) & MASK) + SPLITS.index(split)) & MASK)


def _draw(key: int, number: int, total: int) -> int:
    return ((_mix((key + (number + 1) * GAMMA) & MASK) >> 12) * total) >> 52


def _draw_array(keys: np.ndarray, number: int, totals: np.ndarray | int) -> np.ndarray:
    """keys (n,) uint64, totals (n,) or one -> (n,) int64; the same as _draw for each key."""
    bits = _mix_array(keys + np.uint64((number + 1) * GAMMA & MASK)) >> np.uint64(12)
    return ((bits * np.asarray(totals, dtype=np.uint64)) >> np.uint64(52)).astype(np.int64)


def _pick(weights: Iterable[int], drawn: int) -> int:
    """The option in whose share of the total `drawn` falls."""
    for option, weight in enumerate(weights):
        drawn -= weight
        if drawn < 0:
            return option
    raise AssertionError("drawn at or above the total")


def derive(distribution: Distribution, seed: int) -> Derivation:
    """The derivation of one story."""
    key = _key(seed, distribution.split)
    skeleton_weights = [int(weight) for weight in distribution.weights]
    skeleton = distribution.skeletons[_pick(skeleton_weights, _draw(key, 0, sum(skeleton_weights)))]
    numbers = {name: number for number, name in enumerate(distribution.grammar.variables, 1)}
    values: dict[str, int] = {}
    for variable in skeleton.variables:
        row = _row(distribution, skeleton, variable, values)
        values[variable.name] = _pick(row, _draw(key, numbers[variable.name], sum(row)))
    options: dict[int, int] = {}

    def walk(wording: Wording, base: int) -> None:
        for element in wording:
            if isinstance(element, Choice):
                number = base + element.index
                options[number] = _pick(element.weights, _draw(key, FIRST_CHOICE + number, element.total))
                walk(element.options[options[number]], base)

    for place, scene in enumerate(skeleton.scenes):
        walk(scene.slots, place * CHOICES_PER_SCENE)
    return Derivation(skeleton, values, options)


def _row(distribution: Distribution, skeleton: Skeleton, variable: Variable, values: dict[str, int]) -> list[int]:
    parents = skeleton.parents(variable)
    table = distribution.weights_of(variable, parents)
    return [int(weight) for weight in table[tuple(values[parent.name] for parent in parents)]]


def decisions(distribution: Distribution, derivation: Derivation) -> list[Decision]:
    """The steps of a derivation; weight 0, or no skeleton at all, where the split cannot make it."""
    skeleton, values = derivation.skeleton, dict(derivation.values)
    total = int(distribution.weights.sum())
    if skeleton not in distribution.skeletons:
        return [Decision("skeleton", -1, 0, total)]
    place = distribution.skeletons.index(skeleton)
    steps = [Decision("skeleton", place, int(distribution.weights[place]), total)]
    for variable in skeleton.variables:
        row = _row(distribution, skeleton, variable, values)
        steps.append(Decision(variable.name, values[variable.name], row[values[variable.name]], sum(row)))

    def walk(wording: Wording, scene: Scene, base: int) -> None:
        for element in wording:
            if isinstance(element, Choice):
                option = derivation.options[base + element.index]
                steps.append(Decision(f"{scene.name}.{element.index}", option, element.weights[option], element.total))
                walk(element.options[option], scene, base)

    for number, scene in enumerate(skeleton.scenes):
        walk(scene.slots, scene, number * CHOICES_PER_SCENE)
    return steps


def log_product(steps: Iterable[Decision]) -> float:
    """Natural logarithm of the product of the steps' probabilities; -inf if one of them cannot be."""
    steps = list(steps)
    if any(step.weight == 0 for step in steps):
        return -math.inf
    return math.fsum(math.log(step.weight / step.total) for step in steps)


@dataclass
class _Table:
    """A choice made ready for NumPy: its options' fragments, -1 where something goes in or nothing is.

    lookup: number drawn -> option; inserts: for each option, (column, mention or inner choice) to fill in.
    """

    index: int
    total: int
    width: int
    lookup: np.ndarray  # (total,)
    log_shares: np.ndarray  # (options,)
    fragments: np.ndarray  # (options, width)
    inserts: list[list[tuple[int, "np.ndarray | _Table", str]]] = field(default_factory=list)


class BatchSampler:
    """Draws many stories of a split at once, as numbers of fragments."""

    def __init__(self, distribution: Distribution):
        self.distribution = distribution
        self._numbers: dict[str, int] = {}
        self._scenes = {scene: [self._table(slot) for slot in scene.slots] for scene in distribution.grammar.scenes}
        self.fragments = tuple(self._numbers)
        self._facts: dict[tuple[str, ...], tuple[np.ndarray, np.ndarray, np.ndarray]] = {}
        self._fact_numbers = {name: number for number, name in enumerate(distribution.grammar.variables, 1)}

    def _number(self, text: str) -> int:
        return self._numbers.setdefault(text, len(self._numbers))

    def _table(self, choice: Choice) -> _Table:
        rows: list[list[int]] = []
        inserts: list[list[tuple[int, np.ndarray | _Table, str]]] = []
        for option in choice.options:
            row: list[int] = []
            holes: list[tuple[int, np.ndarray | _Table, str]] = []
            for element in option:
                if isinstance(element, Literal):
                    row.append(self._number(element.text))
                elif isinstance(element, Mention):
                    numbers = np.array([self._number(text) for text in element.texts], dtype=np.int32)
                    holes.append((len(row), numbers, element.variable))
                    row.append(-1)
                else:
                    inner = self._table(element)
                    holes.append((len(row), inner, ""))
                    row.extend([-1] * inner.width)
            rows.append(row)
            inserts.append(holes)
        if choice.total >= LARGEST_TOTAL:
            raise ValueError(f"the weights of a choice add up to {choice.total}, which is not below {LARGEST_TOTAL}")
        width = max(len(row) for row in rows)
        padded = np.array([row + [-1] * (width - len(row)) for row in rows], dtype=np.int32)
        lookup = np.repeat(np.arange(len(rows)), choice.weights)
        shares = np.log(np.array(choice.weights) / choice.total)
        return _Table(choice.index, choice.total, width, lookup, shares, padded, inserts)

    def _fact_table(self, skeleton: Skeleton, variable: Variable) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """lookup (rows, largest total), totals (rows,), log-probabilities (rows, values)."""
        parents = skeleton.parents(variable)
        key = (variable.name, *(parent.name for parent in parents))
        if key not in self._facts:
            weights = self.distribution.weights_of(variable, parents).reshape(-1, len(variable.domain))
            totals = weights.sum(axis=1)
            if totals.max() >= LARGEST_TOTAL:
                raise ValueError(f"the weights of {variable.name} add up to {totals.max()}, not below {LARGEST_TOTAL}")
            lookup = np.zeros((len(weights), totals.max()), dtype=np.int16)
            for row, (weight, total) in enumerate(zip(weights, totals, strict=True)):
                lookup[row, :total] = np.repeat(np.arange(weights.shape[1]), weight)
            with np.errstate(divide="ignore", invalid="ignore"):
                self._facts[key] = lookup, totals, np.log(weights / totals[:, None])
        return self._facts[key]

    def sample(
        self, seed_start: int, count: int, log_probabilities: np.ndarray | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """Fragment numbers of the stories seed_start .. seed_start + count - 1.

        Returns (numbers, offsets): int32 of all stories one after the other, and int64 (count + 1,) where
        each starts. log_probabilities: float64 (count,), zeros, to which each story's log-probability is
        added.
        """
        if count < 0 or not 0 <= seed_start <= MASK + 1 - count:
            raise ValueError(f"seeds must be from 0 to 2^64 - 1, got {count} from {seed_start}")
        seeds = np.uint64(seed_start & MASK) + np.arange(count, dtype=np.uint64)
        split = np.uint64(SPLITS.index(self.distribution.split))
        keys = _mix_array(_mix_array(seeds * np.uint64(GAMMA)) + split)
        chosen, values = self._draw_facts(keys, log_probabilities)
        places = max(len(skeleton.scenes) for skeleton in self.distribution.skeletons)
        blocks: list[tuple[np.ndarray, int, np.ndarray]] = []  # (stories, place, fragments or -1)
        lengths = np.zeros((count, places), dtype=np.int64)
        paths = [skeleton.scenes for skeleton in self.distribution.skeletons]
        for place in range(places):
            for scene in dict.fromkeys(path[place] for path in paths if len(path) > place):
                wanted = np.array([len(path) > place and path[place] is scene for path in paths])
                stories = np.flatnonzero(wanted[chosen])
                if len(stories) == 0:
                    continue
                parts = [
                    self._fill(table, stories, place, keys, values, log_probabilities) for table in self._scenes[scene]
                ]
                block = np.concatenate(parts, axis=1)
                lengths[stories, place] = (block >= 0).sum(axis=1)
                blocks.append((stories, place, block))
        starts = np.zeros(lengths.size + 1, dtype=np.int64)
        np.cumsum(lengths.ravel(), out=starts[1:])
        numbers = np.empty(starts[-1], dtype=np.int32)
        for stories, place, block in blocks:
            present = block >= 0
            ranks = np.cumsum(present, axis=1) - 1
            positions = starts[stories * places + place][:, None] + ranks
            numbers[positions[present]] = block[present]
        return numbers, starts[::places].copy() if count else np.zeros(1, dtype=np.int64)

    def _draw_facts(
        self, keys: np.ndarray, log_probabilities: np.ndarray | None
    ) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        """The skeleton of each story, and each fact's values (0 where its skeleton lacks the fact)."""
        weights = self.distribution.weights
        lookup = np.repeat(np.arange(len(weights)), weights)
        chosen = lookup[_draw_array(keys, 0, len(lookup))]
        if log_probabilities is not None:
            log_probabilities += np.log(weights / weights.sum())[chosen]
        values = {name: np.zeros(len(keys), dtype=np.int64) for name in self._fact_numbers}
        for name, variable in self.distribution.grammar.variables.items():
            for parents in dict.fromkeys(self._parents(skeleton, variable) for skeleton in self.distribution.skeletons):
                if parents is None:
                    continue
                same = [self._parents(skeleton, variable) == parents for skeleton in self.distribution.skeletons]
                stories = np.flatnonzero(np.array(same)[chosen])
                skeleton = self.distribution.skeletons[same.index(True)]
                table, totals, logs = self._fact_table(skeleton, variable)
                rows = np.zeros(len(stories), dtype=np.int64)
                for parent in parents:
                    rows = rows * len(self.distribution.grammar.variables[parent].domain) + values[parent][stories]
                drawn = _draw_array(keys[stories], self._fact_numbers[name], totals[rows])
                values[name][stories] = table[rows, drawn]
                if log_probabilities is not None:
                    log_probabilities[stories] += logs[rows, values[name][stories]]
        return chosen, values

    def _parents(self, skeleton: Skeleton, variable: Variable) -> tuple[str, ...] | None:
        if variable not in skeleton.variables:
            return None
        return tuple(parent.name for parent in skeleton.parents(variable))

    def _fill(
        self,
        table: _Table,
        stories: np.ndarray,
        place: int,
        keys: np.ndarray,
        values: dict[str, np.ndarray],
        log_probabilities: np.ndarray | None,
    ) -> np.ndarray:
        """(len(stories), width) fragment numbers of a choice drawn for each story, -1 where there is none."""
        number = FIRST_CHOICE + place * CHOICES_PER_SCENE + table.index
        options = table.lookup[_draw_array(keys[stories], number, table.total)]
        if log_probabilities is not None:
            log_probabilities[stories] += table.log_shares[options]
        block = table.fragments[options]
        for option, holes in enumerate(table.inserts):
            if not holes:
                continue
            rows = np.flatnonzero(options == option)
            chosen = stories[rows]
            for column, filler, variable in holes:
                if isinstance(filler, _Table):
                    inner = self._fill(filler, chosen, place, keys, values, log_probabilities)
                    block[rows, column : column + filler.width] = inner
                else:
                    block[rows, column] = filler[values[variable][chosen]]
        return block


class TokenBatch(NamedTuple):
    """Stories in tokens: all ids one after the other, and of each story the number of ids and of UTF-8 bytes."""

    tokens: np.ndarray  # (sum of lengths,)
    lengths: np.ndarray  # (stories,) int64
    byte_counts: np.ndarray  # (stories,) int64


class FragmentTokens:
    """Token ids of fragments, so that whole stories become tokens by table look-up.

    Right for every tokenizer that never merges a word with the white space and the word after it (byte-
    level BPE with the usual pre-tokenizer): a story's ids are then its fragments' ids, one after the other.
    """

    def __init__(
        self,
        fragments: Iterable[str],
        encode: Callable[[str], list[int]],
        end_id: int | None = None,
        dtype: type[np.integer] = np.uint16,
    ):
        """encode: text -> ids, without special tokens. end_id: token put after each story, if any."""
        fragments = tuple(fragments)
        ids = [encode(text) for text in fragments]
        largest = max(max(each) for each in ids)
        if max(largest, end_id or 0) > np.iinfo(dtype).max:
            raise ValueError(f"token id {max(largest, end_id or 0)} does not fit into {np.dtype(dtype).name}")
        ids.append([] if end_id is None else [end_id])  # the end of a story: one more fragment, the last
        self.lengths = np.array([len(each) for each in ids], dtype=np.int64)
        self.starts = np.cumsum(self.lengths) - self.lengths
        self.ids = np.concatenate([np.array(each, dtype=dtype) for each in ids])
        self.byte_lengths = np.array([len(text.encode()) for text in fragments], dtype=np.int64)
        self.end_id = end_id

    def byte_counts(self, numbers: np.ndarray, offsets: np.ndarray) -> np.ndarray:
        """(numbers, offsets) of BatchSampler.sample -> UTF-8 bytes of each story's text, int64 (stories,)."""
        ends = np.zeros(len(numbers) + 1, dtype=np.int64)
        np.cumsum(self.byte_lengths[numbers], out=ends[1:])
        return np.diff(ends[offsets])

    def tokens(self, numbers: np.ndarray, offsets: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(numbers, offsets) of BatchSampler.sample -> (token ids, offsets int64 (stories + 1,))."""
        if self.end_id is not None:
            numbers = np.insert(numbers, offsets[1:], len(self.byte_lengths))
            offsets = offsets + np.arange(len(offsets))
        lengths = self.lengths[numbers]
        ends = np.zeros(len(numbers) + 1, dtype=np.int64)
        np.cumsum(lengths, out=ends[1:])
        # Source of each token: its fragment's start, plus its place within the fragment.
        source = np.repeat(self.starts[numbers] - ends[:-1], lengths)
        source += np.arange(len(source))
        return self.ids[source], ends[offsets]
