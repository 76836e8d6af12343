"""What the verbs of the command line do, once their options are read; stdout is data, stderr is talk."""

import os
import shlex
import sys
from collections.abc import Sequence
from dataclasses import asdict, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from rich.table import Table

from rhapsode import storyworld
from rhapsode.decode import SampleConfig, write, write_texts
from rhapsode.evaluation import POLICY, Score, score
from rhapsode.inspection import about_groups, as_text, cost_table, draw, next_token_tables, read
from rhapsode.machine import choose_device
from rhapsode.model import LanguageModel, build_model
from rhapsode.progress import bar, say, show
from rhapsode.run import Run, new_directory
from rhapsode.seeds import check_seed
from rhapsode.sources import EVALUATION, SourceConfig, open_source
from rhapsode.storyworld import judge, report
from rhapsode.storyworld.source import NAME as STORYWORLD
from rhapsode.storyworld.source import GeneratedSource, is_generated, open_generated
from rhapsode.terminal import print_json
from rhapsode.tokenizer import Tokenizer
from rhapsode.tokens import TokenStore, prepare
from rhapsode.training import Outcome, train
from rhapsode.training.data import settings_of
from rhapsode.training.start import TrainingRequest, begin, choose_recipe, resume

EXIT_STOPPED = 130
STORYWORLD_SPLITS = tuple(f"{STORYWORLD}:300:{split}" for split in storyworld.SPLITS if split != "train")
MOST_ASKED = 300  # stories whose references are asked for


def _use(threads: int | None, device: str) -> str:
    if threads is not None:
        torch.set_num_threads(threads)
    return choose_device(device)


def train_command(
    request: TrainingRequest, out: Path | None, go_on: bool, threads: int | None, device: str, tensorboard: bool
) -> None:
    """Trains, or goes on training; prints the run directory to stdout when there is a model in it."""
    device = _use(threads, device)
    if go_on and out is None:
        raise ValueError("--resume needs --out DIR, the run to go on with")
    path = out or new_directory()
    outcome = train_to_the_end(request, path, go_on, device, tensorboard)
    print(path)
    if outcome.ended == "interrupted":
        raise SystemExit(EXIT_STOPPED)


def train_to_the_end(
    request: TrainingRequest, path: Path, go_on: bool, device: str, tensorboard: bool = False
) -> Outcome:
    """Begins or resumes the run at `path` and trains it; tells how to go on where it was interrupted."""
    if tensorboard and find_spec("tensorboard") is None:
        raise ValueError("--tensorboard needs the package tensorboard: pip install 'rhapsode[tensorboard]'")
    say(f"run directory: {path}")
    # A run that was killed before its directory was there begins anew; a bare --resume names one that must be there.
    go_on = go_on and (request == TrainingRequest() or (path / "run.json").exists())
    ready = resume(path, request) if go_on else begin(request, path)
    how_to_go_on = f"go on with: rhapsode train --resume --out {shlex.quote(str(path))}"
    try:
        outcome = train(ready.run, ready.train, ready.valid, device, tensorboard)
    except KeyboardInterrupt:  # the second one
        say(f"stopped at once, without saving; {how_to_go_on}")
        raise
    say(f"run directory: {path}")
    if outcome.ended == "interrupted":
        say(how_to_go_on)
    return outcome


def explain_preset_command(request: TrainingRequest) -> None:
    """Prints what the preset chooses for the request's data, and why, a line each."""
    for line in choose_recipe(request).reasons:
        print(line)


def generate_command(
    path: Path,
    prompt: str,
    config: SampleConfig,
    samples: int,
    checkpoint: str,
    threads: int | None,
    device: str,
    as_json: bool,
) -> None:
    """Writes to stdout as the text comes; with as_json, one object at the end."""
    device = _use(threads, device)
    run = Run.open(path)
    tokenizer, model = run.tokenizer, run.load_model(checkpoint, device)
    if prompt == "-":
        try:
            prompt = sys.stdin.read().removesuffix("\n")  # the line end that `echo` adds
        except UnicodeDecodeError:
            raise ValueError("the prompt is not valid UTF-8") from None
    prompt = _as_text(prompt)
    texts = [""] * samples
    steps: list[list[dict[str, Any]]] = [[] for _ in range(samples)]
    ended: list[str | None] = [None] * samples
    streaming = samples == 1 and not as_json
    if streaming:
        print(prompt, end="", flush=True)
    for step in write(model, tokenizer, prompt, config, samples):
        texts[step.sample] += step.text
        ended[step.sample] = step.ended
        if as_json:
            token = {"id": step.id, "token": tokenizer.token_text(step.id), "log_probability": step.log_probability}
            steps[step.sample].append(token)
        if streaming:
            print(step.text, end="", flush=True)
    if as_json:
        written = [
            {"text": text, "ended": end, "log_probability": sum(t["log_probability"] for t in tokens), "tokens": tokens}
            for text, end, tokens in zip(texts, ended, steps, strict=True)
        ]
        print_json({"prompt": prompt, "samples": written})
    elif streaming:
        print()
    else:
        print("\n\n".join(prompt + text for text in texts))


def _as_text(prompt: str) -> str:
    """The prompt, also where the locale is not UTF-8 but its bytes are; ValueError where they are no text."""
    try:
        prompt.encode()
        return prompt
    except UnicodeEncodeError:  # how Python marks bytes of an argument that its locale cannot read
        try:
            return os.fsencode(prompt).decode()
        except UnicodeError:
            raise ValueError("the prompt is not valid UTF-8") from None


def evaluate_command(
    path: Path,
    data: list[str],
    source_config: SourceConfig,
    as_trained: bool,
    checkpoint: str,
    threads: int | None,
    device: str,
    as_json: bool,
    generate: int,
    sampling: SampleConfig,
) -> None:
    """Scores a run's model on data, by default on what it was validated on; on storyworld, tells all that it can.

    as_trained: whether what source_config leaves open of cutting is as for the run's own text, or guessed anew.
    """
    device = _use(threads, device)
    check_seed(sampling.seed, count=max(1, generate))
    run = Run.open(path)
    model = run.load_model(checkpoint, device)
    on_storyworld = len(data) == 1 and is_generated(data[0])
    if generate and not on_storyworld:
        raise ValueError("--generate reads the stories with storyworld's grammar: rhapsode evaluate RUN storyworld")
    say(f"state: {POLICY}")
    about: dict[str, Any] = {"run": str(path), "policy": POLICY}
    if on_storyworld:
        splits = STORYWORLD_SPLITS if data[0] == STORYWORLD else (data[0],)
        sources = [source for name in splits if isinstance(source := open_source([name]), GeneratedSource)]
        measured = coherence_of(run, model, sources, generate, sampling)
        if as_json:
            print_json(about | measured)
        else:
            for table in report.tables(measured):
                show(table)
        return
    if data:
        source = open_source(data, source_config, EVALUATION, _read_as_in(run, as_trained))
        store, name = prepare(source, run.tokenizer), source.description
    elif "data" not in run.about:
        raise ValueError(f"{path}: keeps no data of its own: name what to score, rhapsode evaluate {path} DATA")
    else:
        store, name = resume(path, as_begun=True).valid, "the run's own validation data"
    result = scored(model, store)
    if as_json:
        print_json(about | {"data": name} | score_fields(result))
    else:
        show(score_table(name, result))


def _read_as_in(run: Run, as_trained: bool) -> SourceConfig | None:
    """The settings by which the run's own data were read, to read others alike; None for a run without data."""
    if "data" not in run.about:
        return None
    settings = settings_of(run.about["data"], str(run.path))
    return settings if as_trained else replace(settings, split="auto", separator=None)


def coherence_of(
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
            texts = write_texts(model, tokenizer, "", sampling, generate, advance)
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
    """`evaluation.score` with a progress bar."""
    with bar("scoring", store.num_tokens, "tokens") as advance:
        return score(model, store, advance)


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


def score_table(name: str, result: Score) -> Table:
    """A score for people."""
    table = Table(show_header=False)
    table.add_row("data", name)
    table.add_row("nats per token", f"{result.nats_per_token:.4f}")
    table.add_row("perplexity", f"{result.perplexity:.3f}")
    if result.bits_per_byte is not None:
        table.add_row("bits per byte", f"{result.bits_per_byte:.4f}")
    if result.correction_bits:
        table.add_row("not spelled by the ids", f"{result.unspelled_bytes:,} bytes, {result.unspelled_share:.1%}")
        share = result.correction_bits / result.num_bytes
        table.add_row("of the bits per byte, to correct that", f"{share:.4f}")
    table.add_row("tokens", f"{result.num_tokens:,}")
    table.add_row("stories", f"{result.num_stories:,}")
    return table


STORY = SampleConfig(max_tokens=400, temperature=0.5)
STORIES = 3


def story_command(minutes: float, seed: int, out: Path | None) -> None:
    """Trains the minute preset on storyworld, for so many minutes, and prints three stories to stdout."""
    check_seed(seed, count=STORIES)
    path = out or new_directory()
    outcome = train_to_the_end(TrainingRequest(own={"train": {"minutes": minutes, "seed": seed}}), path, False, "cpu")
    if outcome.ended == "interrupted":
        raise SystemExit(EXIT_STOPPED)
    run = Run.open(path)
    for text in write_texts(run.load_model(), run.tokenizer, "", replace(STORY, seed=seed), count=STORIES):
        print(text.strip(), end="\n\n")
    say(f"more of them: rhapsode generate {shlex.quote(str(path))}")


def import_command(model: Path, path: Path, tokenizer_path: Path) -> None:
    """Makes a run of the course's model.pt."""
    from rhapsode.course import load_course_model, plain_parts

    config, weights = plain_parts(load_course_model(model))
    tokenizer = Tokenizer.load(tokenizer_path)
    if tokenizer.vocab_size != config.vocab_size:
        raise ValueError(
            f"{tokenizer_path}: a vocabulary of {tokenizer.vocab_size}, {model} has one of {config.vocab_size};"
            " name the model's own with --tokenizer"
        )
    plain = build_model(config, seed=0)
    plain.load_state_dict(weights)
    about = {"model": asdict(config), "tokenizer": tokenizer.fingerprint, "imported": model.name}
    Run.create(path, about, tokenizer, plain)
    print(path)


def inspect_command(path: Path, text: str | None, top: int, out: Path | None, checkpoint: str) -> None:
    """Tables to stdout; pictures into a folder."""
    run = Run.open(path)
    model = run.load_model(checkpoint)
    tokenizer = run.tokenizer if text is not None else None
    show(cost_table(model))
    if text is None or tokenizer is None:
        return
    with bar("reading", None, "tokens") as advance:
        reading = read(model, tokenizer, _as_text(text), top, advance)
    for table in next_token_tables(reading):
        show(table)
    if groups := about_groups(reading):
        print(f"\n{groups}")
    for name, heads in reading.attention.items():
        for head, attention in enumerate(heads):
            print(f"\nattention: {name}, head {head + 1} (rows look at columns, the first column is the beginning)\n")
            print(as_text(reading.labels, attention))
    for file in draw(reading, out or path / "inspect"):
        say(f"saved {file}")
