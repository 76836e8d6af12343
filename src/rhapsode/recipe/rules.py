"""How a preset is fitted to a text: small rules, each a function from how things stand to changes with a reason.

A text that a preset's time reads only a few times is trained on with the preset as it is. A smaller text is read more
often, and then a rate that makes a model learn fast makes it overfit: rules lower it, the more the more often, add
dropout and weight decay, and end in time. What each is worth was measured: docs/presets.md.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

from rhapsode.recipe.changes import Sections
from rhapsode.recipe.configs import BUDGETS, FEWEST_TIMED_STEPS, OptimizerConfig
from rhapsode.recipe.presets import PACE, PACED_THREADS, PRESETS

EPOCHS_AT_FULL_RATE, RATE_FALLS_BY = 3, 2.5  # the power of the epochs by which the rate falls beyond these
LEAST_RATE = 3e-3
FEW_EPOCHS = 5  # beyond these dropout and weight decay come
REREAD_PACE = 0.75  # dropout and carried state take their time
STEPS_TIMES_DECAY = 300
MOST_DECAY = 1.0
MOST_EPOCHS = 20
EPOCHS_WITHOUT_DROPOUT = 7
DROPOUT_PER_DOUBLING = 0.2
MOST_DROPOUT = 0.4
TOKENS_PER_PAIR = 16  # of the text, for each row of the table of pairs
FEWEST_ROWS = 256
BATCHES_PER_EPOCH = 8
SHORTEST_WINDOW = 16
LONG_STORY = 8  # windows
WARMUP_SHARE = 0.2  # of all steps, at most


class TextSize(NamedTuple):
    """What of a text decides: how many tokens and stories there are to train on."""

    num_tokens: int
    num_stories: int


class Change(NamedTuple):
    """A field of a recipe, the value that a rule gives it, and why."""

    section: str
    field: str
    value: Any
    reason: str


@dataclass(frozen=True)
class Fitting:
    """A preset on its way to fit a text. own: what the user chose, by section; threads: that train it; changes: those
    of the rules so far."""

    preset: str
    text: TextSize
    own: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    threads: int = PACED_THREADS
    changes: tuple[Change, ...] = ()

    @property
    def sections(self) -> Sections:
        """The preset's fields with the rules' changes; the user's own fields are not in them."""
        sections = {section: dict(fields) for section, fields in PRESETS[self.preset].items()}
        for change in self.changes:
            sections[change.section][change.field] = change.value
        if "epochs" in sections["train"]:
            del sections["train"]["minutes"]
        return sections

    def get(self, section: str, field: str, default: Any = None) -> Any:
        """The value of a field: the user's, else that of the preset and its rules."""
        return self.own.get(section, {}).get(field, self.sections[section].get(field, default))

    def chosen(self, section: str, field: str) -> bool:
        """Whether the user chose the field."""
        return field in self.own.get(section, {})

    @property
    def budget(self) -> dict[str, Any]:
        """The user's own budget; empty where the preset's counts."""
        return {name: value for name, value in self.own.get("train", {}).items() if name in BUDGETS}

    @property
    def tokens_at_full_pace(self) -> float:
        """How many tokens the budget reads by the preset as it is."""
        train = self.budget or PRESETS[self.preset]["train"]
        pace = PACE[self.preset] * min(1.0, self.threads / PACED_THREADS)
        return tokens_read(pace, train, self.get("batch", "window"), self.text.num_tokens)

    @property
    def epochs_at_full_pace(self) -> float:
        """How often that reads the text."""
        return self.tokens_at_full_pace / self.text.num_tokens

    @property
    def often(self) -> bool:
        """Whether the text is read so often that it needs dropout."""
        return self.epochs_at_full_pace > FEW_EPOCHS

    @property
    def tokens_at_own_pace(self) -> float:
        """How many tokens the budget reads by what the rules have made of the preset."""
        read = self.tokens_at_full_pace
        if self.often and "minutes" in (self.budget or PRESETS[self.preset]["train"]):
            read *= REREAD_PACE
        return read

    @property
    def epochs(self) -> float:
        """How often the text is read, the rule about most epochs considered."""
        if "epochs" in self.sections["train"]:
            return self.sections["train"]["epochs"]
        return self.tokens_at_own_pace / self.text.num_tokens

    @property
    def steps(self) -> float:
        """About how many steps that makes."""
        tokens = self.epochs * self.text.num_tokens
        return tokens / (self.get("batch", "batch_size") * self.get("batch", "window"))


def tokens_read(pace: float, train: Mapping[str, Any], window: int, num_tokens: int) -> float:
    """How many tokens a budget reads, whatever it is counted in.

    pace: tokens per second; train: fields of a TrainConfig, one budget among them; window: tokens of a row; num_tokens:
    of the text.
    """
    if "minutes" in train:
        return 60 * train["minutes"] * pace
    if "sequences" in train:
        return train["sequences"] * window
    return train["tokens"] if "tokens" in train else train["epochs"] * num_tokens


def rows_for_pairs(preset: str, num_tokens: int) -> int:
    """Rows of the table of pairs: the preset's, halved until the text has TOKENS_PER_PAIR for each."""
    rows = PRESETS[preset]["model"]["pair_embeddings"]
    while rows > FEWEST_ROWS and rows * TOKENS_PER_PAIR > num_tokens:
        rows //= 2
    return rows


def fill_an_epoch(case: Fitting) -> list[Change]:
    """Windows and batches small enough that an epoch has a few of them."""
    window, tokens = case.get("batch", "window"), case.text.num_tokens
    if not case.chosen("batch", "window"):
        while window > SHORTEST_WINDOW and BATCHES_PER_EPOCH * window > tokens:
            window = max(SHORTEST_WINDOW, window // 2)
    batch_size = case.get("batch", "batch_size")
    if not case.chosen("batch", "batch_size"):
        batch_size = max(1, min(batch_size, tokens // (BATCHES_PER_EPOCH * window)))
    reason = f"at least {BATCHES_PER_EPOCH} batches per epoch, if the text is long enough"
    return [Change("batch", "window", window, reason), Change("batch", "batch_size", batch_size, reason)]


def carry_long_stories(case: Fitting) -> list[Change]:
    """Stories of many windows: a window goes on from the state at the end of the one before."""
    if case.text.num_tokens < LONG_STORY * case.get("batch", "window") * case.text.num_stories:
        return []
    return [Change("batch", "carry_state", True, f"the average story is at least {LONG_STORY} windows long")]


def end_in_time(case: Fitting) -> list[Change]:
    """At most so many epochs of a text, unless the user chose a budget."""
    if case.budget or case.epochs <= MOST_EPOCHS:
        return []
    minutes = PRESETS[case.preset]["train"]["minutes"]
    return [Change("train", "epochs", float(MOST_EPOCHS), f"instead of {minutes:g} minutes: more epochs overfit")]


def fewer_pairs(case: Fitting) -> list[Change]:
    """No more rows for pairs of tokens than the text can teach."""
    reason = f"at least {TOKENS_PER_PAIR} tokens of text per row, and at least {FEWEST_ROWS} rows"
    return [Change("model", "pair_embeddings", rows_for_pairs(case.preset, case.text.num_tokens), reason)]


def drop_out(case: Fitting) -> list[Change]:
    """Dropout, the more the more often the text is read."""
    dropout = 0.0
    if case.often:
        doublings = math.log2(max(1.0, case.epochs / EPOCHS_WITHOUT_DROPOUT))
        dropout = round(min(MOST_DROPOUT, DROPOUT_PER_DOUBLING * doublings), 2)
    each = f"{DROPOUT_PER_DOUBLING:g} for each doubling of the epochs above {EPOCHS_WITHOUT_DROPOUT}"
    return [Change("model", "dropout", dropout, f"{each}, at most {MOST_DROPOUT:g}")]


def slow_down(case: Fitting) -> list[Change]:
    """A learning rate that falls with the epochs."""
    full, epochs = PRESETS[case.preset]["optimizer"]["learning_rate"], case.epochs_at_full_pace
    if epochs <= EPOCHS_AT_FULL_RATE:
        return []
    rate = max(LEAST_RATE, float(f"{full * (EPOCHS_AT_FULL_RATE / epochs) ** RATE_FALLS_BY:.2g}"))
    share = f"({EPOCHS_AT_FULL_RATE} / epochs)^{RATE_FALLS_BY:g}"
    read = f"{epochs:,.1f} epochs at the speed of the unchanged {case.preset} preset"
    return [Change("optimizer", "learning_rate", rate, f"{full:g} times {share}, at least {LEAST_RATE:g}; {read}")]


def decay_more(case: Fitting) -> list[Change]:
    """A weight decay that the number of steps decides, for a text that is read often."""
    if not case.often:
        return []
    least = PRESETS[case.preset]["optimizer"]["weight_decay"]
    decay = round(min(MOST_DECAY, max(least, STEPS_TIMES_DECAY / case.steps)), 2)
    why = f"{STEPS_TIMES_DECAY} divided by about {case.steps:,.0f} steps, at least {least:g}, at most {MOST_DECAY:g}"
    return [Change("optimizer", "weight_decay", decay, why)]


def warm_up_in_time(case: Fitting) -> list[Change]:
    """A warm-up that leaves most of the steps to what comes after it."""
    if WARMUP_SHARE * case.steps >= OptimizerConfig.warmup_steps:
        return []
    steps = max(FEWEST_TIMED_STEPS, round(WARMUP_SHARE * case.steps))
    reason = f"{WARMUP_SHARE:g} of about {case.steps:,.0f} steps, but at least {FEWEST_TIMED_STEPS}"
    return [Change("optimizer", "warmup_steps", steps, reason)]


Rule = Callable[[Fitting], list[Change]]
RULES: tuple[Rule, ...] = (
    fill_an_epoch,
    carry_long_stories,
    end_in_time,
    fewer_pairs,
    drop_out,
    slow_down,
    decay_more,
    warm_up_in_time,
)


class Fitted(NamedTuple):
    """A preset fitted to one text. sections: its fields, as in PRESETS; reasons: why, for the fields that the text
    decides; text: in a line, how often the text would be read."""

    sections: Sections
    reasons: dict[str, str]
    text: str


def fit_preset(
    name: str, text: TextSize, own: Mapping[str, Mapping[str, Any]] | None = None, threads: int = PACED_THREADS
) -> Fitted:
    """The preset `name` for a text, by all RULES in their order.

    own: what a user chose, by section. Budget, window and batch size decide with the text; what was
    chosen is to be laid over the result. threads: of the processor that it will be trained with. A text that the
    preset's own minutes would read more than MOST_EPOCHS times is read that often.
    """
    case = Fitting(name, text, own or {}, threads)
    for rule in RULES:
        case = replace(case, changes=(*case.changes, *rule(case)))
    read = case.tokens_at_own_pace
    epochs = read / text.num_tokens
    line = f"{text.num_tokens:,} training tokens; {name} would process {read:,.0f}, which is {epochs:,.1f} epochs"
    return Fitted(case.sections, {change.field: change.reason for change in case.changes}, line)
