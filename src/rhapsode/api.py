"""Rhapsode from Python: what the command line can do, as functions that return values.

    model = rhapsode.train("my_stories.txt", minutes=1)          # or a list of texts, or any iterable of them
    model = rhapsode.load("runs/2026-01-31-1")
    print(model.generate("Once upon a time")[0])

The command line, notebooks and benchmarks are users of this file. Nothing here prints, unless `show` asks for it, or
ends the process: what is wrong is a ValueError or an OSError in one line.
"""

import os
from collections.abc import Callable, Iterable, Mapping
from contextlib import nullcontext
from dataclasses import asdict, replace
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rhapsode.arguments import Data, Locations, PathLike, data_of, data_request
from rhapsode.data import DataRequest
from rhapsode.decode import SampleConfig
from rhapsode.evaluation import POLICY
from rhapsode.files import replacing
from rhapsode.machine import Capture, choose_device, graph_capture
from rhapsode.model import LanguageModel, build_model
from rhapsode.notebook import LiveTraining, in_notebook
from rhapsode.progress import say, silent
from rhapsode.recipe import BUDGETS, Recipe
from rhapsode.recipe.changes import Sections, checked, lay
from rhapsode.run import Run, new_directory
from rhapsode.scoring import score_run, scored, tokens_to_score
from rhapsode.seeds import check_seed
from rhapsode.sources import SourceConfig
from rhapsode.terminal import quoted
from rhapsode.threads import fixed_threads
from rhapsode.tokenizer import Tokenizer
from rhapsode.tokenizer.training import KINDS
from rhapsode.trained import Model
from rhapsode.training import Event, Interrupted, train_run
from rhapsode.training.followed import FollowedRun
from rhapsode.training.group import PEER_SECONDS, Group, is_restart, joined
from rhapsode.training.precision import check_precision
from rhapsode.training.start import Ready, TrainingRequest, begin, choose_recipe, resume
from rhapsode.training.worker import started

if TYPE_CHECKING:
    from rhapsode.checking import CheckedFile
    from rhapsode.studies.whole import Finished

MOST_TOKENS = 600  # of a story that is read by the grammar

Section = Mapping[str, Any]


def load(
    path: PathLike,
    *,
    checkpoint: str = "best",
    device: str = "auto",
    tokenizer: PathLike | None = None,
    cuda_graph: bool = False,
) -> Model:
    """The model of a run directory, or of a model.pt that the course's program saved; nothing in it is executed.

    checkpoint: `best` (lowest validation loss) or `last`. device: auto, cpu, cuda or mps. tokenizer: the folder that
    belongs to a model.pt; otherwise `my_tokenizer` beside it. cuda_graph: it writes on the GPU, a step of all texts in
    one launch (docs/gpu.md); otherwise on the CPU, wherever it is. Raises OSError or ValueError in one line that names
    the path.
    """
    path, device = Path(path), choose_device(device)
    capture = graph_capture(device, cuda_graph)
    if path.is_file():
        network, own = _course_model(path, Path(tokenizer) if tokenizer else path.parent / "my_tokenizer")
        return Model(network.to(device), own, capture=capture)
    if tokenizer is not None:
        raise ValueError(f"{path}: a run has its own tokenizer; name one for a model.pt only")
    run = Run.open(path)
    return Model(run.load_model(checkpoint, device), run.tokenizer, run, capture)


def train(
    data: Data | None = None,
    *,
    preset: str | None = None,
    recipe: Recipe | None = None,
    minutes: float | None = None,
    tokens: int | None = None,
    sequences: int | None = None,
    epochs: float | None = None,
    model: Section | None = None,
    optimizer: Section | None = None,
    train: Section | None = None,
    batch: Section | None = None,
    seed: int | None = None,
    out: PathLike | None = None,
    valid: Data | None = None,
    tokenizer: PathLike | Tokenizer | None = None,
    vocab_size: int | None = None,
    cut: str = "auto",
    separator: str | None = None,
    field: str | None = None,
    format: str = "auto",
    device: str = "auto",
    threads: int | None = None,
    precision: str | None = None,
    cuda_graph: bool | None = None,
    resume: bool = False,
    processes: int = 1,
    accumulate: int = 1,
    peer_seconds: float = PEER_SECONDS,
    tensorboard: bool = False,
    on_event: Callable[[Event], object] | None = None,
    show: bool | None = None,
) -> Model:
    """Trains a model on text, keeps it in a run directory, and returns it as `load` does: its best checkpoint.

    data: a file, a folder, `hub:NAME` or `storyworld` (the corpus inside the package) as one str or Path; several as
    Paths; or texts, each a story: a list of str, or any iterable of them, read once in bounded memory. None:
    storyworld. valid: the same, to be judged by; None: a folder's validation split, or a share that is held out.
    preset: minute or coffee, fitted to the text. minutes, tokens, sequences, epochs: the budget, one of
    them, in place of the preset's. model, optimizer, train, batch: fields that are to be otherwise, or recipe: all of
    them, whose vocab_size must be the tokenizer's. seed: of weights, order and dropout.
    out: the run directory, which must be new; otherwise one is made under runs/. resume: continue the run in `out`,
    exactly. tokenizer: a folder, a Tokenizer, or the kind to train (bpe, unigram, characters) with vocab_size tokens.
    cut, separator, field, format: how files are read and cut into stories, as on the command line. threads: a fixed
    number of CPU threads, which several processes share; otherwise chosen as it goes. precision: of the products of a
    step: float32, tf32 or bfloat16, a field of `train`. cuda_graph: whether the whole step is one launch
    (docs/gpu.md); None: on a CUDA GPU. processes: how many of this machine train the model together (1 under torchrun,
    which starts them). accumulate: parts of a batch that a process computes one after the other, to save memory.
    peer_seconds: after which a process that gives no sign is taken for lost. on_event hears what happens
    (`rhapsode.training.events`). show: progress on stderr; None: a bar and a curve in a notebook, nothing elsewhere.

    Raises ValueError or OSError with one line before anything is written; FloatingPointError where the loss is no
    number; Interrupted, a KeyboardInterrupt, after Ctrl-C, once the run is saved.
    """
    wanted = (data, valid, tokenizer, vocab_size, SourceConfig(cut, separator, field, format))
    budget = {"minutes": minutes, "tokens": tokens, "sequences": sequences, "epochs": epochs}
    train = train if precision is None else {**(train or {}), "precision": precision}
    sections = {"model": model, "optimizer": optimizer, "train": train, "batch": batch}
    if tensorboard and find_spec("tensorboard") is None:
        raise ValueError("TensorBoard files need the package tensorboard: pip install 'rhapsode[tensorboard]'")
    if resume and out is None:
        raise ValueError("to resume a run, name its directory: out=")
    if processes < 1:
        raise ValueError(f"processes must be at least 1, got {processes}")
    device = choose_device(device)
    capture = graph_capture(device, cuda_graph)
    live = LiveTraining() if show is None and in_notebook() else None
    with joined(device, peer_seconds) as group, silent(not (show and group.leads)), fixed_threads(threads):
        if processes > 1 and not group.alone:
            raise ValueError(f"torchrun has started {group.size} processes already; leave --processes {processes} out")
        path = Path(group.tell_all(os.path.abspath(out or new_directory()))) if not group.alone else None
        path = path or Path(out or new_directory())
        request = _training_request(data_request(*wanted), preset, recipe, sections, budget, seed)
        if live is not None:
            live.begin()
        check_precision(request.own.get("train", {}).get("precision", "float32"), device)
        ready = _ready(request, path, resume or is_restart(), group)
        others = started(path, processes, device, peer_seconds, accumulate) if processes > 1 else nullcontext(group)
        with others as group:
            _train_to_the_end(ready, device, tensorboard, live, on_event, group, accumulate, capture)
    return load(path, device=device)


def explain_preset(
    data: Data | None = None,
    *,
    preset: str | None = None,
    minutes: float | None = None,
    tokens: int | None = None,
    sequences: int | None = None,
    epochs: float | None = None,
    model: Section | None = None,
    optimizer: Section | None = None,
    train: Section | None = None,
    batch: Section | None = None,
    seed: int | None = None,
    valid: Data | None = None,
    tokenizer: PathLike | Tokenizer | None = None,
    vocab_size: int | None = None,
    cut: str = "auto",
    separator: str | None = None,
    field: str | None = None,
    format: str = "auto",
    show: bool = False,
) -> list[str]:
    """What `train` would choose with the same arguments, and why, a line for each field; trains nothing."""
    wanted = (data, valid, tokenizer, vocab_size, SourceConfig(cut, separator, field, format))
    budget = {"minutes": minutes, "tokens": tokens, "sequences": sequences, "epochs": epochs}
    sections = {"model": model, "optimizer": optimizer, "train": train, "batch": batch}
    with silent(not show):
        return choose_recipe(_training_request(data_request(*wanted), preset, None, sections, budget, seed)).reasons


def _training_request(
    data: DataRequest,
    preset: str | None,
    recipe: Recipe | None,
    sections: Mapping[str, Section | None],
    budget: Mapping[str, Any],
    seed: int | None,
) -> TrainingRequest:
    """The arguments of `train` as what the rooms below take."""
    if recipe is not None and preset is not None:
        raise ValueError("recipe= already sets every field, so preset= has no effect: give only one of them")
    own = _own(recipe, sections, {name: value for name, value in budget.items() if value is not None}, seed)
    if recipe is not None and (data.tokenizer is None or data.tokenizer in KINDS):
        if data.vocab_size not in (None, recipe.model.vocab_size):
            given = f"vocab_size {data.vocab_size}, but the recipe has {recipe.model.vocab_size}"
            raise ValueError(f"{given}: leave it out")
        data = replace(data, vocab_size=recipe.model.vocab_size)
    return TrainingRequest(data, preset, own)


def _own(recipe: Recipe | None, sections: Mapping[str, Section | None], budget: Section, seed: int | None) -> Sections:
    """The fields that were chosen, by section."""
    if len(budget) > 1:
        raise ValueError(f"give only one budget ({', '.join(BUDGETS)}), got {' and '.join(budget)}")
    given = checked({name: fields for name, fields in sections.items() if fields}, "train")
    flags = checked({"train": {**budget, **({} if seed is None else {"seed": seed})}}, "train")
    if recipe is None:
        return lay(given, flags)
    if not isinstance(recipe, Recipe):
        raise ValueError(f"recipe must be a Recipe, got {type(recipe).__name__}; Recipe.from_dict makes one of a dict")
    if given or flags:
        raise ValueError("recipe= already sets every field: change it with recipe.with_changes, or leave recipe= out")
    return recipe.to_dict()


def _ready(request: TrainingRequest, path: Path, resumed: bool, group: Group) -> Ready:
    """The run and its data; process 0 reads and makes them first, and the others find them made."""
    say(f"run directory: {path}")
    if group.leads:
        # A run that was killed before its directory was there begins anew; a bare resume names one that must be there.
        resumed = resumed and (request.is_empty or (path / "run.json").exists())
        ready = resume(path, request) if resumed else begin(request, path, group.size)
        group.meet()
        return ready
    group.meet()
    return resume(path, request, kind=FollowedRun)


def _train_to_the_end(
    ready: Ready,
    device: str,
    tensorboard: bool,
    live: LiveTraining | None,
    on_event: Callable[[Event], object] | None,
    group: Group,
    accumulate: int,
    capture: Capture | None,
) -> None:
    path, stores = ready.run.path, (ready.train, ready.valid)
    how_to_resume = f"resume it with: rhapsode train --resume --out {quoted(path)}"

    def happened(event: Event) -> None:
        for listener in (live, on_event):
            if listener is not None:
                listener(event)

    try:
        how: dict[str, Any] = {"group": group, "accumulate": accumulate, "capture": capture}
        outcome = train_run(ready.run, *stores, device, tensorboard, on_event=happened, **how)
    except KeyboardInterrupt:  # the second one
        say(f"stopped immediately, without saving; {how_to_resume}")
        raise
    say(f"run directory: {path}")
    if outcome.ended == "interrupted":
        say(how_to_resume)
        raise Interrupted(f"stopped and saved in {path}; {how_to_resume}")


def evaluate(
    model: Model | PathLike,
    data: Locations | None = None,
    *,
    generate: int = 0,
    temperature: float = 1.0,
    seed: int = 0,
    checkpoint: str = "best",
    cut: str | None = None,
    separator: str | None = None,
    field: str | None = None,
    format: str = "auto",
    device: str = "auto",
    threads: int | None = None,
    show: bool = False,
) -> dict[str, Any]:
    """Scores a model on data, by default on what it was validated on; on storyworld, all that can be told of it.

    model: a loaded one with a run directory, or the path of that. data: locations, as for `train`. cut, separator,
    field: how they are read; None: as the run's own text was, cut `auto`: guessed anew. generate: on storyworld, how
    many stories to write (at `temperature`, from `seed` on) and read by its grammar. show: progress on stderr.

    Returns what `rhapsode evaluate --json` prints: nats, tokens, bytes, `bits_per_byte` (with the bits that correct
    what the tokenizer cannot spell, `unspelled_share` of the bytes) and so on; on storyworld `excess`, `recall`,
    `generated`. Raises ValueError or OSError with one line.
    """
    check_seed(seed, count=max(1, generate))
    if not isinstance(model, Model):
        model = load(model, checkpoint=checkpoint, device=device)
    if model.run is None:
        raise ValueError("this model has no run directory; score texts with model.score")
    locations = data_of(data, "data")
    if not isinstance(locations, tuple):
        raise ValueError("evaluate scores files; score texts with model.score")
    reading = SourceConfig(cut or "auto", separator, field, format)
    with silent(not show), fixed_threads(threads):
        say(f"state: {POLICY}")
        sampling = SampleConfig(max_tokens=MOST_TOKENS, temperature=temperature, seed=seed)
        return score_run(model.run, model.network, locations, reading, cut != "auto", generate, sampling)


def study(
    name: str,
    data: Locations | None = None,
    *,
    vary: str | Iterable[str] = (),
    assignments: str | Iterable[str] = (),
    scale: float | None = None,
    minutes: float | None = None,
    seeds: int = 1,
    seed: int = 0,
    out: PathLike | None = None,
    publish: PathLike | None = None,
    valid: PathLike | None = None,
    valid_stories: int | None = None,
    tokenizer: PathLike | None = None,
    vocab_size: int | None = None,
    cut: str = "auto",
    separator: str | None = None,
    field: str | None = None,
    format: str = "auto",
    device: str = "auto",
    jobs: int = 1,
    together: bool = False,
    threads: int | None = None,
    cuda_graph: bool | None = None,
    engine: str = "local",
    address: str | None = None,
    storage: str | None = None,
    show: bool = False,
) -> "Finished":
    """Trains many small models that differ in one thing and writes a report; `rhapsode study` from Python.

    name: size, batch, sequences, temperature, all, tracking or grid. vary: of a grid, `field=value,value` texts;
    assignments: `field=value` texts, the same in all models. scale: multiplies the budgets, or minutes: to fit into.
    out: the study's directory, studies/NAME by default; the same call resumes it. publish: a folder that gets the
    report too. jobs: models trained at once. together: models of one shape are trained side by side in one process, a
    step of all of them at once, and count as one of the jobs. engine: local; ray, at the cluster's address or on this
    machine; or `command srun -n1` and the like, which gets a process onto another machine. storage: an address where
    models that train on other machines keep their files, if those do not see `out`. The rest is as for `train`.
    Returns its chapters, settings and page. Raises ValueError or OSError with one line before anything is trained;
    Interrupted after Ctrl-C.
    """
    from rhapsode.studies.plans import StudyRequest
    from rhapsode.studies.whole import run_study

    locations = data_of(data, "data")
    if not isinstance(locations, tuple):
        raise ValueError("a study reads files: write the texts to a file first")
    request = StudyRequest(
        name,
        locations,
        None if valid is None else os.fspath(valid),
        None if tokenizer is None else os.fspath(tokenizer),
        vocab_size,
        (vary,) if isinstance(vary, str) else tuple(vary),
        (assignments,) if isinstance(assignments, str) else tuple(assignments),
        scale,
        minutes,
        seeds,
        seed,
        valid_stories,
        cut,
        separator,
        field,
        format,
    )
    path = Path("studies") / name if out is None else Path(out)
    with silent(not show):
        page = None if publish is None else Path(publish)
        where = (engine, address, storage)
        return run_study(request, path, jobs, threads, device, page, *where, together, cuda_graph)


def check(path: PathLike) -> "list[CheckedFile]":
    """Reads all files of a run, a study, a token store, a tokenizer, a state, a model.pt, an exported page or a packed
    model against their checksums.

    The token stores in the cache that a run or a study uses are read too; nothing is changed. Returns each file with
    `how` it was checked and its `problem`, None where it is intact. Raises OSError or ValueError where the path is
    none of these.
    """
    from rhapsode.checking import check_files

    return check_files(Path(path))


def import_course_model(path: PathLike, out: PathLike, tokenizer: PathLike = "my_tokenizer") -> Model:
    """Makes a run directory of the course's model.pt, and returns its model; nothing in the file is executed.

    tokenizer: the folder that belongs to it. Raises ValueError or OSError with one line that names the file.
    """
    network, own = _course_model(Path(path), Path(tokenizer))
    about = {"model": asdict(network.config), "tokenizer": own.fingerprint, "imported": Path(path).name}
    Run.create(Path(out), about, own, network)
    return load(out, device="cpu")


def _course_model(path: Path, folder: Path) -> tuple[LanguageModel, Tokenizer]:
    """The plain model that a model.pt holds, and its tokenizer; ValueError where the two do not fit together."""
    from rhapsode.course import load_course_model, plain_parts

    config, weights = plain_parts(load_course_model(path))
    tokenizer = Tokenizer.load(folder)
    if tokenizer.vocab_size != config.vocab_size:
        raise ValueError(
            f"{folder}: has {tokenizer.vocab_size} tokens, but {path} has {config.vocab_size};"
            " give the folder of the model's own tokenizer"
        )
    network = build_model(config, seed=0)
    network.load_state_dict(weights)
    return network, tokenizer


def export_html(
    model: Model | PathLike,
    out: PathLike,
    *,
    float16: bool = False,
    valid: Locations | None = None,
    checkpoint: str = "best",
    show: bool = False,
) -> dict[str, Any]:
    """Writes a model as one web page that writes stories offline, and measures what that costs.

    model: a loaded one, or the path of a run. out: the file. Weights are packed as int8 with a scale per row, or with
    float16 as that. valid: what the packed model is measured on; None: what the run was validated on; a model without
    either is not measured.
    Returns file, bytes, parameters, bytes_per_parameter (all but the page itself), and, where it was measured,
    bits_per_byte of the model and bits_per_byte_packed. Raises ValueError where int8 costs LARGEST_RISE bits per byte
    or more, and where the page cannot run the model's tokenizer; nothing is written then.
    """
    from rhapsode.export.html import offline_page
    from rhapsode.export.network import packed_network, unpacked_network
    from rhapsode.export.packed import LARGEST_RISE
    from rhapsode.export.spelling import description

    if not isinstance(model, Model):
        model = load(model, checkpoint=checkpoint, device="cpu")
    locations = data_of(valid, "valid")
    if not isinstance(locations, tuple):
        raise ValueError("valid names files: write the texts to a file first")
    spelling = description(model.tokenizer)
    packed = packed_network(model.network, float16)
    copy = Model(unpacked_network(packed), model.tokenizer, model.run)
    name = Path(out).stem if model.path is None else model.path.name
    parameters = sum(parameter.numel() for parameter in model.network.parameters())
    found: dict[str, Any] = {"file": os.fspath(out), "parameters": parameters}
    with silent(not show):
        if model.run is not None and (locations or "data" in model.run.about):
            store, _ = tokens_to_score(model.run, locations, SourceConfig("auto"), True)
            before, after = (scored(each.network, store).bits_per_byte for each in (model, copy))
            if before is not None and after is not None:
                if not float16 and after - before >= LARGEST_RISE:
                    rise = f"int8 costs {after - before:.4f} bits per byte here"
                    raise ValueError(f"{rise}, {LARGEST_RISE} are too many: export with --float16")
                found |= {"bits_per_byte": before, "bits_per_byte_packed": after}
        stories = copy.generate(temperature=0.5, max_tokens=400, n=4)
        sample = max(stories, key=lambda each: (each.finish_reason == "stop", len(each.tokens))).tokens
    end = model.tokenizer.token_text(model.tokenizer.eos_id)
    about = {"id": name, "name": name, "parameters": parameters, "storyworld": False, "end": end, "sample": sample}
    page, empty = offline_page(packed, spelling, about), offline_page(b"", {}, {})
    with replacing(Path(out)) as temporary:
        temporary.write_bytes(page.encode())
    size = len(page.encode())
    return found | {"bytes": size, "bytes_per_parameter": (size - len(empty.encode())) / parameters}
