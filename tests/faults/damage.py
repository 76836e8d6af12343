"""Damage: bits flipped, files cut short, longer, empty, another's, from a newer version, gone.

Of everything that Rhapsode writes. Each damage is harmless (all values are what they were) or named (one line with the
file in it); never a traceback, never other numbers. `rhapsode check` says so too, and of what is intact says nothing.
"""

import io
import random
import shutil
import zipfile
import zlib
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from damage_kinds import KINDS, Kind
from harness import Tally, Unit
from material import material, using_cache

import rhapsode
from rhapsode import progress
from rhapsode.export.html import BLOCK
from rhapsode.terminal import told

BODY_FLIPS, CUTS = 200, 60
SHORT_TEXT = 12_000  # bytes, of which each is flipped
ONE_OF = 40  # tries of files that another kind has too
Damage = Callable[[bytes], bytes | None]  # the damaged contents; None: the file is gone
NOT_COMPARED = ("log.txt", ".lock")  # text for people


def units(small: bool, group: str = "") -> list[Unit]:
    """group: of the kinds; none: all."""
    return [(kind.name, partial(damage_kind, kind, small)) for kind in KINDS if group in ("", kind.group)]


def damage_kind(kind: Kind, small: bool, seed: int, folder: Path) -> Tally:
    made = material(folder / "made")
    console = progress.console
    with using_cache(made.cache):
        console.file = io.StringIO()
        good = kind.make(made, folder / "good", 0)
        twin = kind.make(made, folder / "twin", 1)
        now = folder / "now" / good.name
        baseline = kind.use(good)
        twin_value = _value(kind, _put(twin, now)) if twin.is_file() else None
        tally, counts = Tally(), Counter()
        for whole in (good, twin):
            problems = [each.problem for each in rhapsode.check(whole) if each.problem]
            tally.note(f"{kind.name}: intact, and named: {problems}" if problems else None)
        draw = random.Random(f"{seed} {kind.name}")
        always: list[tuple[str, str, Damage]] = []
        shared: list[tuple[str, str, Damage]] = []
        once: list[tuple[str, str, Damage]] = []
        for name in _files_of(good):
            other = twin / name if name else twin
            content = (good / name if name else good).read_bytes()
            damages = _damages(Path(name or good).name, content, other.read_bytes() if other.exists() else None, draw)
            for what, damage in damages:
                drawn = what.startswith(("any bit", "cut to")) or (kind.of_another(name) and what.startswith("bit"))
                (shared if drawn else always if what.startswith("bit") else once).append((name, what, damage))
        if small:
            cases = draw.sample(once, min(kind.small // 2, len(once))) + draw.sample(always + shared, kind.small // 2)
        else:
            own = [case for case in shared if not kind.of_another(case[0])]
            of_another = [case for case in shared if kind.of_another(case[0])]
            cases = once + always + draw.sample(own, int(kind.share * len(own)))
            cases += draw.sample(of_another, len(of_another) // ONE_OF)
        for name, what, damage in cases:
            content = (good / name if name else good).read_bytes()
            damaged, file = damage(content), now / name if name else now
            _put(good, now)
            _write_damage(file, damaged)
            console.file = io.StringIO()
            is_the_twin = not name and what == "another's"  # intact in itself
            value = twin_value if is_the_twin else baseline
            outcome = _outcome(kind, now, file, value, is_the_twin or content == damaged)
            counts[outcome if outcome in ("named", "harmless") else "lost"] += 1
            lost = f"{kind.name}, {name or file.name}: {what}: {outcome}"
            tally.note(None if outcome in ("named", "harmless") else lost)
        tally.facts = dict(sorted(counts.items()))
        console.file = None  # type: ignore[assignment]
    return tally


def _files_of(good: Path) -> list[str]:
    if good.is_file():
        return [""]
    files = (path for path in sorted(good.rglob("*")) if path.is_file() and path.name not in NOT_COMPARED)
    return [str(path.relative_to(good)) for path in files]


def _value(kind: Kind, path: Path) -> Any:
    """What a thing holds; None where another one of its kind is refused in its place."""
    try:
        return kind.use(path)
    except ValueError:
        return None


def _put(good: Path, now: Path) -> Path:
    shutil.rmtree(now.parent, ignore_errors=True)
    now.parent.mkdir()
    if good.is_dir():
        shutil.copytree(good, now)
    else:
        shutil.copy(good, now)
    return now


def _write_damage(file: Path, damaged: bytes | None) -> None:
    file.unlink()  # also where it is written anew: ext4 sends a file that is overwritten to the disk at once
    if damaged is not None:
        file.write_bytes(damaged)


def _damages(name: str, content: bytes, twin: bytes | None, draw: random.Random) -> Iterator[tuple[str, Damage]]:
    """Everything that can happen to a file, in words and as what makes it of the file's contents."""
    headers = _headers(name, content)
    body = sorted(set(range(len(content))) - set(headers))
    for places, said in ((headers, "bit"), (draw.sample(body, min(BODY_FLIPS, len(body))), "any bit")):
        for place in places:
            bit = draw.randrange(8)
            yield f"{said} {bit} of byte {place}", partial(_flipped, place, bit)
    ends = {end for place in headers if place + 1 not in headers for end in (place, place + 1, place + 2)}
    lengths = {0, 1, 7, 8, 9, len(content) - 1, len(content) // 2} | set(sorted(ends)[:CUTS])
    lengths |= {draw.randrange(len(content)) for _ in range(CUTS)} if content else set()
    for length in sorted(length for length in lengths if 0 <= length < len(content)):
        yield f"cut to {length} bytes", partial(_cut, length)
    yield "zeros at the end", lambda content: content + bytes(512)
    yield "all zeros", lambda content: bytes(len(content))
    yield "gone", lambda content: None
    if twin is not None and twin != content:
        yield "another's", lambda content: twin
    if newer := _newer(name, content):
        yield "newer", lambda content: newer


def _cut(length: int, content: bytes) -> bytes:
    return content[:length]


def _flipped(place: int, bit: int, content: bytes) -> bytes:
    return content[:place] + bytes([content[place] ^ 1 << bit]) + content[place + 1 :]


def _headers(name: str, content: bytes) -> Sequence[int]:
    """The places of bytes that say what others are: all of a short text; of tensors and arrays, what stands before the
    numbers; of a zip file, its folder and what stands before each file; of a page, the tags of its blocks.
    """
    if name.endswith(".safetensors"):
        return range(8 + int.from_bytes(content[:8], "little"))
    if name.endswith(".npy"):
        return range(min(128, len(content)))
    if name.endswith(".pt"):
        with zipfile.ZipFile(io.BytesIO(content)) as packed:
            tables = [range(packed.start_dir, len(content))]
            tables += [
                range(at, at + 30 + len(each.filename)) for each in packed.infolist() if (at := each.header_offset) >= 0
            ]
        return sorted(place for table in tables for place in table)
    if blocks := list(BLOCK.finditer(content)):
        return [
            place
            for block in blocks
            for place in (*range(block.start(), block.start(3)), *range(block.end(3), block.end()))
        ]
    return range(min(len(content), SHORT_TEXT if name.endswith((".json", ".jsonl", "SUMS", ".packed")) else 256))


def _newer(name: str, content: bytes) -> bytes | None:
    if name.endswith(".packed"):
        raw = zlib.decompress(content)
        assert raw.count(b'"rhapsode_packed":"1"') == 1
        return zlib.compress(raw.replace(b'"rhapsode_packed":"1"', b'"rhapsode_packed":"9"'), 9)
    for old, new in (
        (b'"format_version": 1', b'"format_version": 9'),
        (b'"format_version": 2', b'"format_version": 9'),
        (b'"format_version":"1"', b'"format_version":"9"'),
        (b'"rhapsode_state":"1"', b'"rhapsode_state":"9"'),
        (b'"version": "1.0"', b'"version": "9.0"'),
    ):
        if old in content:
            return content.replace(old, new)
    return None


def _outcome(kind: Kind, path: Path, file: Path, expected: Any, intact: bool) -> str:
    """`named`, `harmless`, or what went wrong. expected: the value, where the damage does not matter."""
    try:
        value = kind.use(path)
    except (ValueError, OSError) as error:
        message = told(error)
        if len(message.splitlines()) != 1 or len(message) > 2000:
            return f"not one line: {message!r}"
        outcome = "named" if str(path) in message else f"named without the path: {message}"
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    else:
        said = progress.console.file.getvalue()  # type: ignore[attr-defined]
        outcome = "harmless" if value == expected else "named" if file.name in said else "other values, in silence"
    if not intact:
        try:
            problems = [each.problem for each in rhapsode.check(path) if each.problem]
        except (ValueError, OSError):
            problems = ["named"]
        except Exception as error:
            return f"check: {type(error).__name__}: {error}"
        if outcome == "named" and not problems:
            return "rhapsode check finds nothing"
    return outcome
