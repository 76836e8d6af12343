import inspect
import re
import subprocess
import sys
import textwrap
from pathlib import Path

from rhapsode.textbook import chapters, tape

ROOT = Path(__file__).resolve().parents[2]


def test_the_page_in_docs_has_not_drifted():
    """Edit the docstrings or the examples and run `make docs`; this fails until the page says the same."""
    written = (ROOT / "docs" / "textbook.md").read_text(encoding="utf-8")
    assert written.startswith(chapters.page())


def test_links_of_the_page_lead_somewhere():
    page = chapters.page()
    headings = re.findall(r"^## (.+)$", page, re.MULTILINE)
    anchors = {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}
    targets = re.findall(r"\]\(([^)]+)\)", page)
    assert len([t for t in targets if t.startswith("#")]) == len(chapters.CHAPTERS)
    for target in targets:
        if target.startswith("#"):
            assert target[1:] in anchors
        else:
            assert (ROOT / "docs" / target).exists()


def test_the_code_in_the_tapes_docstring_does_what_it_says():
    _, _, code = inspect.cleandoc(tape.__doc__).rpartition("are not pushed.")
    names = dict(vars(tape))
    exec(textwrap.dedent(code), names)
    assert names["W"].output_gradient.tolist() == [[1, 2]]


def test_the_textbook_stands_alone():
    """No PyTorch and no other room: an oracle that shared code with what it checks would be none."""
    code = """
import importlib, pkgutil, sys, rhapsode
allowed = set(m for m in sys.modules if m.startswith("rhapsode"))
import rhapsode.textbook
for module in pkgutil.walk_packages(rhapsode.textbook.__path__, "rhapsode.textbook."):
    if not module.name.endswith("__main__"):
        importlib.import_module(module.name)
ours = {m for m in sys.modules if m.startswith("rhapsode") and not m.startswith("rhapsode.textbook")}
print(sorted(ours - allowed), "torch" in sys.modules, "matplotlib" in sys.modules, "jinja2" in sys.modules)
"""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout == "[] False False False\n"


def test_the_chapters_import_only_numpy_and_the_standard_library():
    third_party = re.compile(r"^(?:from|import) (\w+)", re.MULTILINE)
    for module in chapters.CHAPTERS:
        imported = set(third_party.findall(inspect.getsource(module)))
        assert imported - set(sys.stdlib_module_names) <= {"numpy", "rhapsode"}
