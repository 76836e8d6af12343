"""docs/references.md has every paper that the code and its pages name, and nothing that nobody names."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "references.md"
NAME = r"[A-Z][A-Za-zÀ-ž-]+"
AUTHORS = rf"(?:{NAME} et al\.|(?:{NAME}, )?{NAME} and {NAME})"
TITLE = r'(?:,? "[^"]{1,90}",?)?'
CITED = (
    rf"\b({AUTHORS}){TITLE},? \(?((?:19|20)\d\d)\b",  # Name et al. 2019; Name and Name, "Title", 2019
    rf"\((?:after )?({NAME})(?:,)? ((?:19|20)\d\d)[,;)]",  # (Name 1927)
)
ARXIV = r"(?:arXiv[ :]*|arxiv\.org/abs/)(\d{4}\.\d{4,5})"


def flat(text: str) -> str:
    """In one line, without the marks of comments."""
    return " ".join(re.sub(r"^\s*#+ ?", "", text, flags=re.MULTILINE).split())


def named(text: str) -> set[str]:
    """The papers that a text names, as `Name et al. 2019`."""
    return {f"{who} {year}" for pattern in CITED for who, year in re.findall(pattern, flat(text))}


def texts() -> dict[str, str]:
    """What may name a paper: the code, its pages, the benchmarks."""
    files = [*ROOT.glob("src/**/*.py"), *ROOT.glob("benchmarks/*.*"), *ROOT.glob("docs/*.md"), *ROOT.glob("*.md")]
    return {str(file.relative_to(ROOT)): file.read_text(encoding="utf-8") for file in files if file != PAGE}


@pytest.fixture(scope="module")
def entries() -> dict[str, str]:
    """The page's entries by the names in bold."""
    found = re.findall(r"^- (?:\*\*(.+?)\*\*: )?(.*?)(?=^-|^#|\Z)", PAGE.read_text(encoding="utf-8"), re.M | re.S)
    return {name: flat(entry) for name, entry in found if name}


def test_names_are_found_as_they_are_written() -> None:
    """Would catch a pattern that sees nothing: the other tests would pass on any page."""
    assert named("top-p (Holtzman et\nal. 2020), as (Wilson 1927) and (after Elias 1975) have it") == {
        "Holtzman et al. 2020",
        "Wilson 1927",
        "Elias 1975",
    }
    assert named(
        '# RMSNorm: Zhang and Sennrich, "Root mean square\n# layer normalization", 2019. So et al., "X", 2021.'
    ) == {
        "Zhang and Sennrich 2019",
        "So et al. 2021",
    }
    assert named("SplitMix64 (Steele, Lea and Flood 2014)") == {"Steele, Lea and Flood 2014"}
    assert named("arXiv 1908.04319, in July 2021, 2,019 steps and Python 3") == set()


def test_every_paper_that_is_named_is_on_the_page(entries: dict[str, str]) -> None:
    missing = {f"{file}: {name}" for file, text in texts().items() for name in named(text) - entries.keys()}
    assert not missing


def test_every_paper_on_the_page_is_named(entries: dict[str, str]) -> None:
    """Would catch an entry that outlived the code."""
    everywhere = set().union(*(named(text) for text in texts().values()))
    assert not entries.keys() - everywhere


def test_entries_are_whole(entries: dict[str, str]) -> None:
    """A title, and where to find it: arXiv, DOI or an address (a report without one says so); authors in full."""
    assert len(entries) > 20
    for name, entry in entries.items():
        assert re.search(r'"[^"]{10,}"', entry), name
        assert re.search(rf"{ARXIV}|doi\.org/10\.|https?://|technical report", entry), name
        first = re.split(r" et al| and |, | \d", name)[0]
        assert first in entry.partition('"')[0], name
        for number in re.findall(r"\[arXiv (\S+)\]", entry):
            assert f"https://arxiv.org/abs/{number}" in entry, name


def test_numbers_in_the_code_are_those_of_the_page() -> None:
    """Would catch two numbers for one paper."""
    known = set(re.findall(ARXIV, PAGE.read_text(encoding="utf-8")))
    for file, text in texts().items():
        assert set(re.findall(ARXIV, flat(text))) <= known, file
