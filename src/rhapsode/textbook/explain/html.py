"""A worked example as one web page that needs nothing else: text, calculations, figures as inline SVG."""

import io
import os
import re
import tempfile
from pathlib import Path

from rhapsode.textbook.explain.page import Heading, Illustration, Lines, Text, WorkedExample

TEMPLATE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{{ title }}</title>
<style>
  body { max-width: 60rem; margin: 3rem auto; padding: 0 1.25rem; color: #22303c; background: #fff;
         font: 17px/1.6 Charter, "Bitstream Charter", Georgia, serif; }
  h1 { font-size: 1.9rem; line-height: 1.25; border-bottom: 3px solid #c8553d; padding-bottom: .5rem; }
  h2 { font-size: 1.25rem; margin-top: 2.4rem; }
  pre { background: #f5f7f9; border-left: 3px solid #2a6f97; padding: .8rem 1rem; overflow-x: auto;
        font: 12.5px/1.5 "DejaVu Sans Mono", Menlo, Consolas, monospace; }
  code { font: .85em "DejaVu Sans Mono", Menlo, Consolas, monospace; background: #f5f7f9;
         padding: .1em .3em; }
  figure { margin: 1.6rem 0; }
  figure svg { display: block; max-width: 100%; height: auto; margin: 0 auto; }
  figcaption { font-size: .9rem; color: #55636f; text-align: center; margin-top: .4rem; }
  @media print { body { margin: 0 auto; } pre { white-space: pre-wrap; } }
</style>
</head>
<body>
<h1>{{ title }}</h1>
{% for kind, content, caption in blocks %}
{% if kind == "heading" %}<h2>{{ content }}</h2>
{% elif kind == "text" %}<p>{{ content }}</p>
{% elif kind == "lines" %}<pre>{{ content }}</pre>
{% else %}<figure>{{ content }}<figcaption>{{ caption }}</figcaption></figure>
{% endif %}
{% endfor %}
</body>
</html>
"""


def to_html(example: WorkedExample) -> str:
    """The page. Raises ValueError if matplotlib or jinja2 are not installed."""
    try:
        import jinja2
        import matplotlib
        from markupsafe import Markup, escape
    except ImportError as error:
        raise ValueError(f"--html needs {error.name}: pip install 'rhapsode[study]'") from error

    blocks = []
    # A fixed salt makes the ids, and so the file, the same each time.
    # A `$` in a name is no formula.
    settings = {"svg.hashsalt": example.title, "font.family": "DejaVu Sans", "text.parse_math": False}
    with matplotlib.rc_context(settings):
        for block in example.blocks:
            if isinstance(block, Heading):
                blocks.append(("heading", block.text, ""))
            elif isinstance(block, Text):
                blocks.append(("text", Markup(with_code(str(escape(block.text)))), ""))
            elif isinstance(block, Lines):
                blocks.append(("lines", "\n".join(block.lines), ""))
            else:
                blocks.append(("figure", Markup(_svg(block, len(blocks))), block.caption))
    environment = jinja2.Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
    return environment.from_string(TEMPLATE).render(title=example.title, blocks=blocks)


def write_html(example: WorkedExample, path: Path) -> None:
    """Writes the page of an example; a reader never sees half of it."""
    write_page(to_html(example), path)


def with_code(escaped: str) -> str:
    """HTML in which what stands in backticks is code."""
    return re.sub(r"`([^`]+)`", r"<code>\1</code>", escaped)


def write_page(page: str, path: Path) -> None:
    """Writes a page whole or not at all. Raises OSError, with the path as it was given, where that cannot be."""
    if path.is_dir():
        raise IsADirectoryError(f"{path} is a folder: name a file")
    if not path.parent.is_dir():
        raise FileNotFoundError(f"{path}: there is no folder {path.parent}")
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(page)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o644)  # mkstemp's 0o600 would hide a page from a web server
        os.replace(temporary, path)
    except BaseException as error:
        os.unlink(temporary)
        if isinstance(error, OSError):
            error.filename = str(path)  # that of a full disk names no file
        raise


def _svg(figure: Illustration, position: int) -> str:
    """The figure as an <svg> element whose ids are unique on the page."""
    from markupsafe import escape
    from matplotlib.figure import Figure as Canvas

    canvas = Canvas(figsize=figure.size, layout="constrained")
    figure.draw(canvas)
    buffer = io.StringIO()
    canvas.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    svg = buffer.getvalue()
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r'(\bid="|href="#|url\(#)', rf"\g<1>f{position}-", svg)
    return svg.replace("<svg ", f'<svg role="img" aria-label="{escape(figure.caption)}" ', 1)
