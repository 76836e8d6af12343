"""A run's model on data: scores on any text, and on storyworld all that storyworld can tell of it."""

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from rhapsode import storyworld
from rhapsode.data import reading_settings
from rhapsode.decode import Engine, SampleConfig, write_texts
from rhapsode.evaluation import POLICY, Score, check_finite, score
from rhapsode.model import LanguageModel
from rhapsode.progress import bar
from rhapsode.run import Run
from rhapsode.sources import EVALUATION, SourceConfig, open_source
from rhapsode.storyworld import judge
from rhapsode.storyworld.source import STORYWORLD, GeneratedSource, is_generated, open_generated
from rhapsode.tokens import TokenStore, prepare
from rhapsode.training.start import resume

STORYWORLD_SPLITS = tuple(f"{STORYWORLD}:300:{split}" for split in storyworld.SPLITS if split != "train")
MOST_ASKED = 300  # stories whose references are asked for


def score_run(
    run: Run,
    model: LanguageModel,
    data: Sequence[str],
    reading: SourceConfig,
    as_trained: bool,
    generate: int,
    sampling: SampleConfig,
) -> dict[str, Any]:
    """Scores the model on data, by default on what its run was validated on; on storyworld, all that can be told.

    as_trained: whether what `reading` leaves open of cutting is as for the run's own text, or guessed anew. generate:
    how many stories of its own are written and read, on storyworld. Raises ValueError where there is nothing to score.
    """
    about: dict[str, Any] = {"run": str(run.path), "policy": POLICY}
    on_storyworld = len(data) == 1 and is_generated(data[0])
    if generate and not on_storyworld:
        raise ValueError(
            "--generate checks the stories by storyworld's grammar, so the data must be storyworld: rhapsode"
            " evaluate RUN storyworld"
        )
    if on_storyworld:
        splits = STORYWORLD_SPLITS if data[0] == STORYWORLD else (data[0],)
        sources = [source for name in splits if isinstance(source := open_source([name]), GeneratedSource)]
        return about | on_stories(run, model, sources, generate, sampling)
    store, name = tokens_to_score(run, data, reading, as_trained)
    return about | {"data": name} | score_fields(scored(model, store))


def tokens_to_score(run: Run, data: Sequence[str], reading: SourceConfig, as_trained: bool) -> tuple[TokenStore, str]:
    """The data in the run's tokens, and what they are called; by default what the run was validated on."""
    if data:
        source = open_source(data, reading, EVALUATION, _read_as_in(run, as_trained))
        return prepare(source, run.tokenizer), source.description
    if "data" not in run.about:
        raise ValueError(
            f"{run.path}: has no data of its own: name the data to score, rhapsode evaluate {run.path} DATA"
        )
    return resume(run.path, as_begun=True).valid, "the run's own validation data"


def _read_as_in(run: Run, as_trained: bool) -> SourceConfig | None:
    """The settings by which the run's own data were read, to read others alike; None for a run without data."""
    if "data" not in run.about:
        return None
    settings = reading_settings(run.about["data"], str(run.path))
    return settings if as_trained else replace(settings, split="auto", separator=None)


def on_stories(
    run: Run, model: LanguageModel, sources: Sequence[GeneratedSource], generate: int, sampling: SampleConfig
) -> dict[str, Any]:
    """Distance to the floor and recall on each of the sources; `generate` stories sampled and read."""
    tokenizer = run.tokenizer
    excesses, recall, chance = [], {}, {}
    for source in sources:
        result = scored(model, prepare(source, tokenizer))
        where = (source.count, source.split, source.seed_start)
        share = result.unspelled_share or 0.0
        excesses.append(judge.excess(result.nats_of_text, result.num_bytes, *where, share))
        asked = min(MOST_ASKED, source.count)
        stories = [
            storyworld.sample(seed, source.split) for seed in range(source.seed_start, source.seed_start + asked)
        ]
        with bar(f"references of {source.split}", asked, "stories") as advance:
            recall[source.split] = judge.reference_scores(model, tokenizer, stories, advance)
        chance[source.split] = storyworld.chance(stories)
    generated = None
    if generate:
        with bar("writing stories", None, "tokens") as advance:
            texts = write_texts(Engine(model, tokenizer), "", sampling, generate, advance)
        generated = judge.check_stories(texts, *_trained_on(run))
    return judge.summary(excesses, recall, chance, generated)


def _trained_on(run: Run) -> tuple[int, str, int]:
    """Which stories of storyworld the run was trained on: (count, split, first seed); none if on something else."""
    locations = run.about.get("data", {}).get("locations", [])
    if len(locations) != 1 or not is_generated(locations[0]):
        return 0, "train", 0
    source = open_generated(locations[0])
    return source.count, source.split, source.seed_start


def scored(model: Any, store: TokenStore) -> Score:
    """`evaluation.score` with a progress bar; FloatingPointError where the loss is not a finite number."""
    with bar("scoring", store.num_tokens, "tokens") as advance:
        result = score(model, store, advance)
    check_finite(math.isfinite(result.nats))
    return result


def score_fields(result: Score) -> dict[str, Any]:
    """A score for JSON."""
    return {
        "nats_per_token": result.nats_per_token,
        "perplexity": result.perplexity,
        "bits_per_byte": result.bits_per_byte,
        "unspelled_share": result.unspelled_share,
        "correction_bits": result.correction_bits,
        "nats": result.nats,
        "tokens": result.num_tokens,
        "bytes": result.num_bytes,
        "stories": result.num_stories,
    }
