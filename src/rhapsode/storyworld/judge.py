"""What storyworld tells about a model: the distance to the floor, memory for what was said, stories of its own.

    excess       how far the loss is from the least possible, in bits per byte: a Kullback-Leibler divergence
    recall       how often the right word is the likeliest where a story refers to a fact told before
    generated    how many of the model's stories are stories, where the others break, how many are new

Measured on `valid` it is what was learnt; on `held_out_skeletons` and `held_out_combinations`, plots and pairs that
training never has, it is what was composed rather than remembered.
"""

import itertools
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from rhapsode import storyworld
from rhapsode.model import LanguageModel
from rhapsode.state import State
from rhapsode.storyworld import Accuracy, GeneratedReport, Story
from rhapsode.tokenizer import Tokenizer

STORIES_AT_ONCE = 32
SEEDS_AT_ONCE = 10_000


# The distance to the floor


@dataclass(frozen=True)
class Excess:
    """A model's loss on stories beside what it can be at least, all in bits per byte.

    floor: the split's exact entropy, which the loss over ever more stories cannot go below. sample_floor: minus the
    log-probability of these very stories; the luck of the draw, which is in both, cancels in `excess`.
    unspelled_share: of the bytes, what the model's tokenizer cannot spell; the loss has the bits to correct that.
    """

    split: str
    num_stories: int
    num_bytes: int
    bits_per_byte: float
    floor: float
    sample_floor: float
    unspelled_share: float = 0.0

    @property
    def excess(self) -> float:
        """Estimates KL(stories || model) per byte, without bias; 0 for the true distribution alone."""
        return self.bits_per_byte - self.sample_floor

    @property
    def excess_bits_per_story(self) -> float:
        """The bits that the model wastes on a story."""
        return self.excess * self.num_bytes / self.num_stories


def excess(
    nats: float,
    byte_count: int,
    count: int,
    split: str = "valid",
    seed_start: int = 0,
    unspelled_share: float = 0.0,
) -> Excess:
    """How far a model is from the floor, given its loss on the stories seed_start .. seed_start + count - 1.

    nats: its summed negative log-likelihood of these stories, byte_count: the UTF-8 bytes of their texts; both as
    `evaluate.score` gives them for `storyworld:COUNT:SPLIT`, as nats_of_text and num_bytes. The nats include the token
    that ends each story: no story is the beginning of another, so its end is certain, and it costs the true
    distribution nothing. A text has other spellings in tokens than the tokenizer's, and what the model gives those
    counts as wasted too, as do the corrections where a tokenizer cannot spell the text.
    Raises ValueError if the stories have another number of bytes: the nats are of other stories then.
    """
    true_nats, true_bytes = 0.0, 0
    for start in range(seed_start, seed_start + count, SEEDS_AT_ONCE):
        number = min(SEEDS_AT_ONCE, seed_start + count - start)
        true_nats -= float(storyworld.sample_log_probabilities(start, number, split).sum())
        true_bytes += sum(len(text.encode()) for text in storyworld.sample_batch(start, number, split))
    if byte_count != true_bytes:
        stories = f"the stories {seed_start:,} to {seed_start + count - 1:,} of the split {split}"
        raise ValueError(f"{stories} have {true_bytes:,} bytes, but the loss covers {byte_count:,}")
    floor = storyworld.entropy(split).bits_per_byte
    loss, sample_floor = nats / math.log(2) / byte_count, true_nats / math.log(2) / byte_count
    return Excess(split, count, byte_count, loss, floor, sample_floor, unspelled_share)


# Memory for what was said


class Branch(NamedTuple):
    """A question in tokens: after how many ids of its story it is asked, and what each continuation adds there."""

    question: storyworld.Cloze
    place: int
    continuations: list[list[int]]  # the right one first


def branches(tokenizer: Tokenizer, stories: Sequence[Story]) -> list[tuple[list[int], list[Branch]]]:
    """Each story's ids, and its labelled references as branches off them, in order.

    Continuations are tokenized with their prefix. Where the tokenizer lets no token run over the cut, the branch is
    where the prefix ends; otherwise before the first token that the prefix alone would not have.
    """
    questions = [storyworld.clozes(story) for story in stories]
    texts = [story.text for story in stories]
    for question in itertools.chain.from_iterable(questions):
        texts += [question.prefix, *(question.prefix + each for each in (question.right, *question.wrong))]
    encoded = iter(ids.tolist() for ids in tokenizer.encode_batch(texts))
    ids_of_stories = list(itertools.islice(encoded, len(stories)))
    found = []
    for ids, asked in zip(ids_of_stories, questions, strict=True):
        branched = []
        for question in asked:
            prefix, *whole = itertools.islice(encoded, 2 + len(question.wrong))
            place = min(_agreement(ids, other) for other in (prefix, *whole))
            branched.append(Branch(question, place, [other[place:] for other in whole]))
        found.append((ids, branched))
    return found


def _agreement(one: list[int], other: list[int]) -> int:
    """How many ids both begin with."""
    shorter = min(len(one), len(other))
    if one[:shorter] == other[:shorter]:
        return shorter
    return next(i for i in range(shorter) if one[i] != other[i])


@torch.inference_mode()
def continuation_log_probabilities(
    model: LanguageModel,
    stories: Sequence[tuple[list[int], list[Branch]]],
    eos_id: int,
    on_stories: Callable[[int], None] | None = None,
) -> list[list[list[float]]]:
    """For each branch of each story the log-probabilities of its continuations, in nats, summed over their tokens.

    stories: as `branches` gives them. Each begins with eos_id and a fresh state. The stories of a batch walk
    forward together, from one place where any of them has a branch to the next, and the state there, a value,
    serves all continuations: nothing is read twice, and no row is ever padded before a token that counts.
    The model is put into eval mode and back, and PyTorch to one thread. on_stories hears of progress.
    """
    found = [[[0.0] * len(branch.continuations) for branch in branched] for _, branched in stories]
    # The story that is asked last comes first: those that are done fall off the end of the batch.
    last = [max((branch.place for branch in branched), default=-1) for _, branched in stories]
    order = sorted(range(len(stories)), key=lambda i: -last[i])
    was_training, threads = model.training, torch.get_num_threads()
    model.eval()
    # Each call is a few dozen tokens: threads gain little, and on a machine with other work they wait for each other
    # at every product, ten times as long as one thread takes for all.
    torch.set_num_threads(1)
    try:
        for begin in range(0, len(order), STORIES_AT_ONCE):
            batch = order[begin : begin + STORIES_AT_ONCE]
            _walk(model, stories, batch, eos_id, found)
            if on_stories:
                on_stories(len(batch))
    finally:
        torch.set_num_threads(threads)
        model.train(was_training)
    return found


def _walk(
    model: LanguageModel,
    stories: Sequence[tuple[list[int], list[Branch]]],
    batch: list[int],
    eos_id: int,
    found: list[list[list[float]]],
) -> None:
    device = next(model.parameters()).device
    at: dict[int, list[tuple[int, int]]] = {}  # place -> (row, number of the branch)
    for row, i in enumerate(batch):
        for number, branch in enumerate(stories[i][1]):
            at.setdefault(branch.place, []).append((row, number))
    rows = [[eos_id, *stories[i][0]] for i in batch]
    longest = max(at, default=-1) + 1
    tokens = torch.tensor([(ids + [eos_id] * longest)[:longest] for ids in rows], device=device)  # (B, longest)
    read, state = 0, None
    for place in sorted(at):
        asked = at[place]
        active = 1 + max(row for later, pairs in at.items() if later >= place for row, _ in pairs)
        state = state and state.rows(slice(active))
        x, state = model.features(tokens[:active, read : place + 1], state)
        read = place + 1
        wanted = [(row, ids) for row, number in asked for ids in stories[batch[row]][1][number].continuations]
        scores = iter(_score(model, x[:, -1], state, [row for row, _ in wanted], [ids for _, ids in wanted]))
        for row, number in asked:
            answers = found[batch[row]][number]
            answers[:] = itertools.islice(scores, len(answers))


def _score(
    model: LanguageModel, x: Tensor, state: State, rows: Sequence[int], continuations: Sequence[list[int]]
) -> list[float]:
    """Log-probabilities of continuations, each after the prefix whose features x (B, width) and state its row has."""
    device = x.device
    asked = torch.tensor(rows, device=device)
    logits = model.logits(x[asked][:, None], state.copies and state.rows(asked).copies)[:, 0]
    first = logits.double().log_softmax(-1)  # (continuations, V)
    scores = first[torch.arange(len(rows)), [ids[0] for ids in continuations]].tolist()
    alike: dict[int, list[int]] = {}  # those with 1 to 2, 3 to 8, 9 to 32, ... ids to read: little padding, few calls
    for i, ids in enumerate(continuations):
        if len(ids) > 1:
            alike.setdefault((len(ids) - 2).bit_length() // 2, []).append(i)
    for some in alike.values():
        longest = max(len(continuations[i]) for i in some)
        padded = [continuations[i] + [-1] * (longest - len(continuations[i])) for i in some]
        tokens, index = torch.tensor(padded, device=device), torch.tensor([rows[i] for i in some], device=device)
        logits, _ = model(tokens[:, :-1].clamp(min=0), state.rows(index))
        targets = tokens[:, 1:, None]
        chosen = logits.double().log_softmax(-1).gather(2, targets.clamp(min=0)).where(targets >= 0, 0.0)
        for i, rest in zip(some, chosen.sum((1, 2)).tolist(), strict=True):
            scores[i] += rest
    return scores


def reference_scores(
    model: LanguageModel,
    tokenizer: Tokenizer,
    stories: Sequence[Story],
    on_stories: Callable[[int], None] | None = None,
) -> Accuracy:
    """How often the right continuation is likelier than each wrong one at the labelled references of the stories.

    What `storyworld.reference_accuracy` says, computed in one pass over the stories. A tie is wrong. Compare it with
    `storyworld.chance(stories)`. Raises ValueError if the stories have no labelled reference.
    """
    asked = branches(tokenizer, stories)
    answers = continuation_log_probabilities(model, asked, tokenizer.eos_id, on_stories)
    return storyworld.accuracy(
        storyworld.ReferenceOutcome(branch.question.kind, branch.question.distance, right > max(wrong))
        for (_, branched), found in zip(asked, answers, strict=True)
        for branch, (right, *wrong) in zip(branched, found, strict=True)
    )


# Stories of its own


def check_stories(
    texts: Iterable[str], training_count: int, split: str = "train", seed_start: int = 0
) -> GeneratedReport:
    """What became of stories that a model wrote, each from a fresh state to its </s>.

    training_count, split, seed_start: what it was trained on, made again to see which stories are new (about 30 MB
    of text per second); 0 if it was trained on something else.
    """
    training = storyworld.training_stories(training_count, seed_start, split)
    return storyworld.check_generated(texts, training)


# All of it, for JSON and for people


def summary(
    excesses: Iterable[Excess] = (),
    recall: Mapping[str, Accuracy] | None = None,
    chance: Mapping[str, Accuracy] | None = None,
    generated: GeneratedReport | None = None,
) -> dict[str, Any]:
    """Everything measured as an object for JSON; parts that were not measured are left out.

    recall, chance: split -> what `reference_scores` and `storyworld.chance` gave.
    """
    result: dict[str, Any] = {}
    floors = {
        each.split: {
            "stories": each.num_stories,
            "bytes": each.num_bytes,
            "bits_per_byte": each.bits_per_byte,
            "unspelled_share": each.unspelled_share,
            "floor_bits_per_byte": each.floor,
            "sample_floor_bits_per_byte": each.sample_floor,
            "excess_bits_per_byte": each.excess,
            "excess_bits_per_story": each.excess_bits_per_story,
        }
        for each in excesses
    }
    if floors:
        result["excess"] = floors
    if recall:
        result["recall"] = {
            split: _accuracy_fields(accuracy, (chance or {}).get(split)) for split, accuracy in recall.items()
        }
    if generated is not None:
        result["generated"] = asdict(generated)
    return result


def _accuracy_fields(accuracy: Accuracy, chance: Accuracy | None) -> dict[str, Any]:
    def fields(cell: tuple[float, int], guessed: tuple[float, int] | None) -> dict[str, Any]:
        return {"accuracy": cell[0], "references": cell[1], **({"chance": guessed[0]} if guessed else {})}

    def part(cells: dict[str, tuple[float, int]], guessed: dict[str, tuple[float, int]]) -> dict[str, Any]:
        return {name: fields(cell, guessed.get(name)) for name, cell in cells.items()}

    return {
        "overall": fields(accuracy.overall, chance.overall if chance else None),
        "by_distance": part(accuracy.by_distance, chance.by_distance if chance else {}),
        "by_kind": part(accuracy.by_kind, chance.by_kind if chance else {}),
    }
