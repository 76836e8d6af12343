"""A trained model as one web page that needs nothing else: the page, the tokenizer and the weights in one file.

The modules of serve/page/ are put one after the other, each in a function of its own; the model runs in a worker made
of some of them. The page's Content-Security-Policy names its script and style by their digests and allows no network.

Each block of data has a CRC-32, which the page itself compares; the whole file has a SHA-256, for `rhapsode check`.
"""

import base64
import hashlib
import json
import re
import zlib
from importlib.resources import files
from typing import Any

ASSETS = files("rhapsode.serve") / "page"
IMPORT = re.compile(r'^import \{([\w,\s]+)\} from "\./(\w+)\.js";\n', re.MULTILINE)
EXPORT = re.compile(r"^export (?=(?:async )?(?:class|function|const|let) (\w+))", re.MULTILINE)
BLOCKS = ("weights", "tokenizer", "about", "worker")
BLOCK = re.compile(rb'<script type="[a-z/]+" id="(\w+)" data-crc32="([0-9a-f]{8})">(.*?)</script>', re.DOTALL)
SEAL = re.compile(rb'<meta name="sha256" content="([0-9a-f]{64})">')  # of the page with zeros there
ZEROS = "0" * 64


def offline_page(packed: bytes, spelling: dict[str, Any], about: dict[str, Any]) -> str:
    """The file's text. packed: as `pack` gives the model; spelling: as `description` gives the tokenizer.

    about: what the page says of the model (id, name, parameters) and the ids of the story that it shows first (sample).
    """
    style, script = _file("page.css"), _in_one("main")
    policy = "; ".join(
        [
            "default-src 'none'",
            f"script-src '{_digest(script)}'",
            f"style-src '{_digest(style)}'",
            "worker-src blob:",
            "img-src data:",
            "base-uri 'none'",
            "form-action 'none'",
        ]
    )
    data = [
        _block("weights", "text/plain", base64.b64encode(packed).decode()),
        _block("tokenizer", "application/json", json.dumps(spelling, ensure_ascii=False, separators=(",", ":"))),
        _block("about", "application/json", json.dumps(about, ensure_ascii=False)),
        _block("worker", "text/plain", _in_one("worker")),
    ]
    page = _file("index.html")
    for found, instead in (
        (
            '<meta charset="utf-8">',
            f'<meta charset="utf-8">\n<meta http-equiv="Content-Security-Policy" content="{policy}">'
            f'\n<meta name="sha256" content="{ZEROS}">',
        ),
        ('<link rel="stylesheet" href="page/page.css">', f"<style>{style}</style>"),
        (
            '<script type="module" src="page/main.js"></script>',
            "\n".join([*data, f'<script type="module">{script}</script>']),
        ),
    ):
        assert page.count(found) == 1, f"index.html must have {found} once"
        page = page.replace(found, instead)
    return page.replace(ZEROS, hashlib.sha256(page.encode()).hexdigest(), 1)


def is_offline_page(content: bytes) -> bool:
    """Whether a file's bytes look like those of an exported page, intact or not."""
    return b' data-crc32="' in content


def check_offline_page(content: bytes) -> bool:
    """Whether the page has a checksum of all of it: pages of earlier versions have those of their data alone.

    Raises ValueError, naming the part, where they are not the bytes that were exported.
    """
    found = {id.decode(): (said, data) for id, said, data in BLOCK.findall(content)}
    for id in BLOCKS:
        if id not in found:
            raise ValueError(f"damaged (its {id} are cut or missing): export it again")
        said, data = found[id]
        if said != b"%08x" % zlib.crc32(data):
            raise ValueError(f"damaged (its {id}): export it again")
    seal = SEAL.search(content)
    if seal is not None:
        place, end = seal.span(1)
        if hashlib.sha256(content[:place] + ZEROS.encode() + content[end:]).hexdigest() != seal[1].decode():
            raise ValueError("damaged, or edited (its text or its script): export it again")
    return seal is not None


def _file(name: str) -> str:
    return (ASSETS / name).read_text("utf-8")


def _digest(text: str) -> str:
    return f"sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}"


def _block(id: str, kind: str, text: str) -> str:
    """Data in a page with their checksum, which offline.js compares.

    Nothing in them can end the element: in JSON and JavaScript alike, \\u003c in a string is <.
    """
    escaped = text.replace("</", "<\\/").replace("<!--", "<\\u0021--")
    return f'<script type="{kind}" id="{id}" data-crc32="{zlib.crc32(escaped.encode()):08x}">{escaped}</script>'


def _in_one(name: str) -> str:
    """A module and all that it imports as one script, those first that others import."""
    parts: dict[str, str] = {}

    def add(module: str) -> None:
        if module in parts:
            return
        text = _file(f"{module}.js")
        for _, other in IMPORT.findall(text):
            add(other)
        names = ", ".join(EXPORT.findall(text))
        body = EXPORT.sub("", IMPORT.sub(r"const {\1} = in_\2;\n", text))
        parts[module] = f"const in_{module} = (() => {{\n{body}\nreturn {{ {names} }};\n}})();\n"

    add(name)
    script = "\n".join(parts.values())
    assert not re.search(r"^(import|export) |</script", script, re.MULTILINE), (
        f"{name}.js cannot be put into one script"
    )
    return script
