"""What lies elsewhere: `https://`, `s3://`, `gs://` and whatever else fsspec knows, read as files of this computer.

A text is read several times, so it is copied into the cache first, once for each version that the other side tells of.
Token stores are not copied: of them, pieces are read where they lie (`tokens/ranges.py`).
"""

import hashlib
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import Any

from rhapsode.files import cache_root, making
from rhapsode.progress import bar, say
from rhapsode.sources.files import format_of_name

ADDRESS_OF_ANOTHER = re.compile(r"[a-z][a-z0-9+.-]+://.")
_COLLAPSED = re.compile(r"([a-z][a-z0-9+.-]+):/(?=[^/])")
CONNECT_SECONDS, READ_SECONDS = 15.0, 60.0


def is_remote(location: str) -> bool:
    """Whether a location is an address such as `s3://bucket/stories.jsonl`."""
    return ADDRESS_OF_ANOTHER.match(location) is not None


def location_of(path: str) -> str:
    """A location that went through a `pathlib.Path`, which makes `https:/x` of `https://x`."""
    return path if os.path.exists(path) else _COLLAPSED.sub(r"\1://", path, count=1)


def file_system(location: str) -> tuple[Any, str]:
    """(fsspec's file system, the path in it); ValueError where there is none for such addresses, or not installed."""
    import fsspec

    options: dict[str, Any] = {}
    if location.startswith(("http://", "https://")):
        try:
            import aiohttp
        except ImportError:
            raise ValueError(f"{location}: needs the package aiohttp; pip install 'rhapsode[remote]'") from None
        limits = aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_SECONDS, sock_read=READ_SECONDS)
        options["client_kwargs"] = {"timeout": limits}
    try:
        return fsspec.core.url_to_fs(location, **options)
    except ImportError as error:  # its text names the package
        raise ValueError(f"{location}: {_one_line(error)}") from None
    except ValueError as error:
        raise ValueError(f"{location}: {_one_line(error)}; for a file of that name write ./{location}") from None


@contextmanager
def reaching(location: str) -> Iterator[None]:
    """Makes one line, an OSError, of whatever goes wrong on the way to an address."""
    try:
        yield
    except FileNotFoundError:  # which fsspec also says of a web server that does not answer
        what = "not found, or no answer" if location.startswith("http") else "no such file or folder"
        raise FileNotFoundError(f"{location}: {what}") from None
    except PermissionError as error:
        raise PermissionError(f"{location}: access is refused ({_one_line(error)})") from None
    except OSError as error:
        if error.filename and not is_remote(str(error.filename)):
            raise  # of this computer's own disk
        raise OSError(f"{location}: cannot be reached ({_one_line(error)})") from None
    except ValueError:
        raise
    except Exception as error:  # each library has errors of its own
        raise OSError(f"{location}: cannot be reached ({_one_line(error)})") from None


def fetch(location: str) -> Path:
    """The file or folder at an address, copied into the cache where this version of it is not there yet.

    Of a folder, the files with the suffixes of data. Raises ValueError or OSError with one line.
    """
    system, root = file_system(location)
    with reaching(location):
        names = _names(system, root, location)
        versions = [f"{name} {system.ukey(name)}" for name in names]
        key = hashlib.sha256("\n".join([location, *versions]).encode()).hexdigest()[:32]
        folder = cache_root() / "remote" / key
        own = folder / PurePosixPath(root.rstrip("/")).name
        if own.exists():
            return own
        sizes = {name: system.size(name) for name in names}
        total = None if None in sizes.values() else sum(sizes.values()) / 1e6
        try:
            with making(folder) as temporary, bar(f"copying {location}", total, "MB") as advance:
                for name in names:
                    inside = PurePosixPath(name).relative_to(PurePosixPath(root))
                    target = temporary / own.name / inside
                    target.parent.mkdir(parents=True, exist_ok=True)
                    system.get_file(name, str(target))
                    if sizes[name] is not None and target.stat().st_size != sizes[name]:
                        raise OSError(f"only {target.stat().st_size:,} of {sizes[name]:,} bytes came")
                    advance(target.stat().st_size / 1e6)
        except FileExistsError:
            pass  # another process copied it meanwhile
        except OSError as error:
            if not own.exists():
                raise error from None
    say(f"{location}: copied into {own}")
    return own


def _names(system: Any, root: str, location: str) -> list[str]:
    """The paths of a folder's data files, or of the one file."""
    if "http" in system.protocol or system.isfile(root):  # a web server has no folders
        return [root]
    found = sorted(name for name in system.find(root) if format_of_name(name))
    if not found:
        if not system.exists(root):
            raise FileNotFoundError(root)
        raise ValueError(f"{location}: no file in it whose name ends as data do")
    return found


def _one_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
