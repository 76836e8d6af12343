"""Data sets of the Hugging Face Hub: `hub:NAME`, downloaded once, a broken download continued.

    hub:tinystories                           short for roneneldan/TinyStories
    hub:org/name                              the training split
    hub:org/name:validation                   another split
    hub:org/name@revision                     a branch, tag or commit, instead of main
    hub:org/name/folder/or/file.txt           only what lies there

The files stay in the cache folder under their commit. A second run asks the Hub only whether the revision has
moved, and works without a network too. HF_ENDPOINT and HF_TOKEN are honoured, as everywhere with the Hub.
"""

import hashlib
import json
import os
import re
import time
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

from filelock import FileLock

from rhapsode.files import cache_root, write_text
from rhapsode.progress import say
from rhapsode.sources.files import format_of_name
from rhapsode.sources.folders import EVALUATION, SPLIT_WORDS, words_of

SHORT_NAMES = {"tinystories": "roneneldan/TinyStories"}
NOT_DATA = re.compile(r"(^|/)(\.|readme|license|dataset_infos?\.json|requirements|config)|\.md$", re.IGNORECASE)
FRUITLESS_ATTEMPTS = 3
SECONDS_BETWEEN_ATTEMPTS = 1.0
ADDRESS = re.compile(
    r"hub:(?P<repo>[\w.-]+(/[\w.-]+)?)(?P<inside>/[^@:]+)?(@(?P<revision>[^@:]+))?(:(?P<split>[\w-]+))?"
)


class Address(NamedTuple):
    """What `hub:NAME` names: a data set, perhaps only what is inside a folder of it, revision and split."""

    repo: str
    inside: str
    revision: str
    split: str


def parse_address(location: str) -> Address:
    """Takes `hub:org/name/inside@revision:split` apart; all but the name may be missing."""
    first = re.split("[/@:]", location.removeprefix("hub:"))[0]
    match = ADDRESS.fullmatch(location.replace(first, SHORT_NAMES.get(first.lower(), first), 1))
    if not match:
        raise ValueError(f"{location}: not of the form hub:org/name, hub:org/name@revision or hub:org/name:split")
    repo, inside, revision, split = match.group("repo", "inside", "revision", "split")
    return Address(repo, (inside or "").strip("/"), revision or "main", split or "train")


def download(location: str) -> list[tuple[Path, str]]:
    """The data set's files with what they are called, downloaded where they are not in the cache.

    Raises ValueError where the name leads to nothing readable, OSError where the network fails.
    """
    hub = _library(location)
    address = parse_address(location)
    # The library reads HF_ENDPOINT when it is first imported, which may have been long ago.
    endpoint = (os.environ.get("HF_ENDPOINT") or hub.constants.ENDPOINT).rstrip("/")
    folder = cache_root() / "hub" / re.sub(r"\W+", "-", endpoint.split("://")[-1]) / address.repo.replace("/", "--")
    folder.mkdir(parents=True, exist_ok=True)
    index = folder / "files-of-{}.json".format(re.sub(r"[^\w.]+", "-", address.revision))
    try:
        commit, names = _list_files(hub, address, endpoint, location)
    except OSError as error:
        if not index.exists():
            raise
        known = json.loads(index.read_text(encoding="utf-8"))
        commit, names = known["commit"], known["names"]
        say(f"{error}; using what was downloaded before")
    else:
        write_text(index, json.dumps({"commit": commit, "names": names}))
    files = []
    for name in choose_files(names, address.inside, address.split, location):
        path = folder / commit / name
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            with FileLock(f"{path}.lock"):
                if not path.exists():
                    _fetch(hub, address, commit, name, endpoint, path)
        files.append((path, f"hub:{address.repo}/{name}"))
    return files


def choose_files(names: list[str], inside: str, split: str, location: str) -> list[str]:
    """Which of a data set's files hold the split: those whose path says so, in the best of its formats.

    Parquet comes before JSONL, tables, text and JSON: the Hub itself makes it of a data set, a record per story.
    Files in different folders are different variants of a data set, so the user has to choose one.
    """
    if inside in names:
        return [inside]
    data = [name for name in names if format_of_name(name) and not NOT_DATA.search(name)]
    if inside:
        data = [name for name in data if name.startswith(inside + "/")]
    if not data:
        there = ", ".join(names[:8]) or "none"
        raise ValueError(f"{location}: no text, JSON, JSONL, CSV or Parquet file; there are: {there}")

    def words(name: str) -> set[str]:
        return set(words_of(name[len(inside) :]))

    meant = next((synonyms for synonyms in SPLIT_WORDS.values() if split.lower() in synonyms), {split.lower()})
    chosen = [name for name in data if words(name) & meant]
    if not chosen and split == "train":
        chosen = [name for name in data if not any(words(name) & SPLIT_WORDS[other] for other in EVALUATION)]
    if not chosen:
        raise ValueError(f"{location}: no file of split {split!r}; there are: {', '.join(data[:8])}")
    formats = {name: format_of_name(name) for name in chosen}
    best = next(format for format in ("parquet", "jsonl", "csv", "tsv", "text", "json") if format in formats.values())
    chosen = sorted(name for name in chosen if formats[name] == best)
    folders = sorted({str(PurePosixPath(name).parent) for name in chosen})
    if len(folders) > 1:
        there = ", ".join(folders[:12])
        raise ValueError(f"{location}: several variants; choose one, as hub:ORG/NAME/FOLDER, of: {there}")
    return chosen


def _library(location: str) -> Any:
    try:
        import huggingface_hub.constants
        import huggingface_hub.errors
        import huggingface_hub.utils
    except ImportError:
        raise ValueError(f"{location}: needs the package huggingface_hub; pip install 'rhapsode[hub]'") from None
    return huggingface_hub


def _list_files(hub: Any, address: Address, endpoint: str, location: str) -> tuple[str, list[str]]:
    """The commit that the revision stands for now, and the names of all its files."""
    errors = hub.errors
    try:
        info = hub.HfApi(endpoint=endpoint).dataset_info(address.repo, revision=address.revision, timeout=30)
    except errors.HFValidationError as error:
        raise ValueError(f"{location}: {_one_line(error)}") from None
    except errors.GatedRepoError:
        page = f"{endpoint}/datasets/{address.repo}"
        raise ValueError(f"{location}: access must be requested at {page}; then set HF_TOKEN") from None
    except errors.RevisionNotFoundError:
        raise ValueError(f"{location}: the data set has no revision {address.revision!r}") from None
    except errors.RepositoryNotFoundError:
        raise ValueError(f"{location}: no such data set on {endpoint} (or a private one: set HF_TOKEN)") from None
    except Exception as error:  # the library lets the many errors of its HTTP client through
        raise OSError(f"{location}: no answer from {endpoint}: {_one_line(error)}") from None
    names = [sibling.rfilename for sibling in info.siblings or []]
    return info.sha, [name for name in names if ".." not in name.split("/") and not name.startswith("/")]


def _fetch(hub: Any, address: Address, commit: str, name: str, endpoint: str, path: Path) -> None:
    """Downloads one file of one commit to `path`, going on from where an earlier attempt or run broke off.

    The library's `hf_hub_download` continues within one call only: what it had is lost when the process ends.
    Its `http_get` takes a position to go on from, so we keep the partial file ourselves. A break loses
    the library's block that was on its way, 10 MB at most.
    """
    from huggingface_hub.file_download import http_get

    url = hub.hf_hub_url(address.repo, name, repo_type="dataset", revision=commit, endpoint=endpoint)
    called = f"hub:{address.repo}/{name}"
    try:
        about = hub.get_hf_file_metadata(url, endpoint=endpoint)
    except Exception as error:
        raise OSError(f"{called}: cannot be downloaded: {_one_line(error)}") from None
    partial = path.with_name(f"{path.name}.partial")
    fruitless = 0
    with partial.open("ab", buffering=0) as stream:
        while True:
            had = stream.seek(0, os.SEEK_END)
            if had:
                say(f"{called}: resuming the download at {had / 1e6:,.1f} MB")
            try:
                headers = hub.utils.build_hf_headers()
                http_get(url, stream, resume_size=had, headers=headers, expected_size=about.size)
                break
            except Exception as error:
                refused = isinstance(error, hub.errors.HfHubHTTPError)
                if isinstance(error, OSError) and error.errno is not None:  # the disk, not the network
                    raise
                has = stream.seek(0, os.SEEK_END)
                fruitless = 0 if has > had else fruitless + 1
                if refused or fruitless == FRUITLESS_ATTEMPTS:
                    of = f" of {about.size / 1e6:,.1f}" if about.size else ""
                    raise OSError(
                        f"{called}: the download stopped at {has / 1e6:,.1f}{of} MB ({_one_line(error)});"
                        " run the same command again to resume it"
                    ) from None
                time.sleep(SECONDS_BETWEEN_ATTEMPTS)
        os.fsync(stream.fileno())
    if re.fullmatch(r"[0-9a-f]{64}", about.etag or ""):  # the Hub names large files by their SHA-256
        with partial.open("rb") as stream:
            right = hashlib.file_digest(stream, "sha256").hexdigest() == about.etag
        if not right:
            partial.unlink()
            raise OSError(f"{called}: damaged in transit, its SHA-256 differs; run the same command again")
    os.replace(partial, path)


def _one_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
