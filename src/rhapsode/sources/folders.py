"""What of a folder is data: the files of known kinds, less those that only tell of them, by the splits of their names.

Data sets are laid out as `train.jsonl` and `test.jsonl`, `data/train-00000-of-00002.parquet`, or `validation/a.txt`.
"""

import re
from collections.abc import Sequence
from pathlib import Path, PurePath
from typing import NamedTuple

from rhapsode.sources.files import FORMATS, format_of_name, shown

SPLIT_WORDS = {
    "train": {"train", "training"},
    "validation": {"validation", "valid", "val", "dev"},
    "test": {"test", "testing"},
}
TRAINING = ("train",)
EVALUATION = ("validation", "test")
NOT_DATA = re.compile(
    r"(readme|licen[cs]e|copying|citation|changelog|contributing|code_of_conduct)([\W_].*)?"
    r"|(dataset_infos?|dataset_dict|state|config|metadata|tokenizer\w*|special_tokens_map|package)\.json"
    r"|requirements.*\.txt",
    re.IGNORECASE,
)
SHARD = re.compile(r"([-_.]?\d)*([-_]of[-_]\d+)?")  # behind the name of a split, as in train-00000-of-00002


class Found(NamedTuple):
    """What a folder holds: the files to read, the others with the reason in words, and whether a validation split
    lies apart."""

    files: list[Path]
    left_out: list[str]
    has_validation: bool


def files_in(folder: Path, wanted: Sequence[str] = TRAINING, format: str = "auto") -> Found:
    """The data files below a folder, sorted by path; hidden ones are passed over.

    wanted: where file names tell of splits, the files of the first of these that there is. format: what the user says
    they are; then files of this suffix, or where there are none, all of them. Raises ValueError where nothing is left.
    """
    visible = [
        path
        for path in sorted(folder.rglob("*"))
        if path.is_file() and not any(part.startswith(".") for part in path.relative_to(folder).parts)
    ]
    about = [path for path in visible if NOT_DATA.fullmatch(path.name)]
    data = [path for path in visible if not NOT_DATA.fullmatch(path.name)]
    known = [path for path in data if format_of_name(path)]
    if format != "auto":
        known = [path for path in known if format_of_name(path) == format] or known or data
    if not known:
        beside = f"; {', '.join(shown(path.name) for path in about[:4])} only describes data" if about else ""
        raise ValueError(
            f"{shown(folder)}: no file in it ends in one of {' '.join(FORMATS)} (or these with .gz, .zst){beside}"
        )
    splits = dict(zip(known, splits_of([path.relative_to(folder) for path in known]), strict=False))
    split = next((name for name in wanted if name in splits.values()), "")
    taken = [path for path in known if splits.get(path, "") == split]
    reasons = {path: f" ({found or 'no'} split)" for path, found in splits.items()}
    others = sorted(set(visible) - set(taken))
    left_out = [f"{shown(path.relative_to(folder))}{reasons.get(path, '')}" for path in others]
    return Found(taken, left_out, wanted == TRAINING and "validation" in splits.values())


def splits_of(names: Sequence[PurePath]) -> list[str]:
    """The split of each file, "" for none; an empty list where the names are not those of a data set's splits.

    They are where a folder or a whole name is that of a split, beside other files; or where a word in one name is
    `train` and in another `valid` or `test`. A story that is called my-train-journey.txt is no split.
    """
    for split_of in (_named_split, _mentioned_split):
        splits = [split_of(name) for name in names]
        apart = {split for split in splits if split in EVALUATION}
        rest = [split for split in splits if split not in EVALUATION]
        if apart and rest and (split_of is _named_split or "train" in rest):
            if "train" not in rest:  # then all that is not set apart is for training
                splits = [split or "train" for split in splits]
            return splits
    return []


def _named_split(name: PurePath) -> str:
    return _split_in([*name.parts[:-1], _stem(name)], SHARD)


def _mentioned_split(name: PurePath) -> str:
    return _split_in(words_of(_stem(name)), re.compile(""))


def _split_in(words: Sequence[str], behind: re.Pattern[str]) -> str:
    for split, synonyms in SPLIT_WORDS.items():
        for word in words:
            letters = re.match(r"[a-z]*", word.lower()).group()  # type: ignore[union-attr]
            if letters in synonyms and behind.fullmatch(word.lower(), len(letters)):
                return split
    return ""


def words_of(name: str) -> list[str]:
    """The runs of letters in a name, in small letters."""
    return re.split(r"[^a-z]+", name.lower())


def _stem(name: PurePath) -> str:
    """The file's name without the suffixes that tell format and packing."""
    stem = name.name
    while PurePath(stem).suffix.lower() in (*FORMATS, ".gz", ".zst"):
        stem = PurePath(stem).stem
    return stem
