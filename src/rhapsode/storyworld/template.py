"""One line of story text, compiled: literal fragments, mentions of facts, and choices between wordings.

Notation inside a line:

    {n1}        the word of a fact (the hero's name); {n1.he} another form; {Home}, {n1.He} capitalised
    {a k1}      the same with its article, a or an; {A k1} at the start of a sentence
    [big|huge]  one of several wordings, equally likely; they may hold mentions, but no brackets

Everything is cut at white space: each fragment but a story's first starts with the white space before its
first word. No tokenizer that splits words at white space can therefore merge two fragments into one token.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

UNIT = re.compile(r"\s*\S+")  # a word with the white space before it, by which stories are read
_ELEMENT = re.compile(r"(?:\[[^\]]*\]|\{[^}]*\}|[^\s\[\]{}])+")
_GROUP = re.compile(r"^([^\[]*)\[([^\]]*)\]([^\[]*)$")
_MENTION = re.compile(r"^([^{]*)\{(?:([aA]) )?([A-Za-z]\w*)(?:\.(\w+))?\}([^{]*)$")


@dataclass(frozen=True, eq=False)
class Domain:
    """The values that a fact of one type can take, each with its forms, its weight and its properties.

    forms: form name -> the text for each value; "it" is the word itself. kinds: form name -> the kind of
    reference that a later mention of it makes (the domain's name, unless the form follows from the fact).
    """

    name: str
    forms: Mapping[str, tuple[str, ...]]
    kinds: Mapping[str, str]
    weights: tuple[int, ...]
    properties: Mapping[str, tuple[str, ...]]

    def __len__(self) -> int:
        return len(self.weights)

    @cached_property
    def telling(self) -> frozenset[tuple[str, str]]:
        """The pairs (known, form) such that a reader who saw the form `known` can tell the form `form`."""
        pairs = {
            (known, form): set(zip(self.forms[known], self.forms[form], strict=True))
            for known in self.forms
            for form in self.forms
        }
        return frozenset(key for key, seen in pairs.items() if len(seen) == len({known for known, _ in seen}))


@dataclass(frozen=True, eq=False)
class Literal:
    """A run of words that is always the same."""

    text: str


@dataclass(frozen=True, eq=False)
class Mention:
    """A fact in words: texts[v] is the whole fragment for value v, cores[v] the bare word's span in it."""

    variable: str
    domain: Domain
    form: str
    article: bool
    texts: tuple[str, ...]
    cores: tuple[tuple[int, int], ...]

    @property
    def reveals(self) -> bool:
        """Whether the text tells the value: no two values look the same."""
        return len(set(self.texts)) == len(self.texts)

    def core(self, value: int) -> str:
        start, end = self.cores[value]
        return self.texts[value][start:end]

    def before(self, value: int) -> str:
        """What the fragment has before the bare word: white space, quotation marks, article."""
        return self.texts[value][: self.cores[value][0]]


@dataclass(frozen=True, eq=False)
class Choice:
    """One of several wordings, drawn with integer weights; `index` counts the choices of a scene."""

    options: tuple["Wording", ...]
    weights: tuple[int, ...]
    index: int

    @property
    def total(self) -> int:
        return sum(self.weights)


Element = Literal | Mention | Choice
Wording = tuple[Element, ...]


def _capitalised(text: str) -> str:
    return text[:1].upper() + text[1:]


def with_article(text: str) -> str:
    return ("an " if text[0].lower() in "aeiou" else "a ") + text


class LineCompiler:
    """Compiles the lines of one scene; holds the counter that numbers the scene's choices."""

    def __init__(self, variables: Mapping[str, Domain], where: str):
        self.variables = variables
        self.where = where  # file and scene, for errors
        self.choices = 0

    def slot(self, lines: list[str], lead: str) -> Choice:
        """A choice between lines; "3* text" has weight 3. lead: white space before the first word."""
        index = self._next_index()
        weights, options = [], []
        for line in lines:
            weight, text = re.match(r"^(?:(\d+)\*\s)?(.*)$", line).groups()  # type: ignore[union-attr]
            weights.append(int(weight or 1))
            options.append(self._wording(text, lead))
        return Choice(tuple(options), tuple(weights), index)

    def _next_index(self) -> int:
        self.choices += 1
        return self.choices - 1

    def _wording(self, text: str, lead: str, in_group: bool = False) -> Wording:
        elements: list[Element] = []
        written = _ELEMENT.findall(text)
        if not written or "".join(written) != re.sub(r"\s+(?![^{]*\})(?![^\[]*\])", "", text):
            raise ValueError(f"{self.where}: brackets do not match in {text!r}")
        for source in written:
            if "[" in source:
                if in_group:
                    raise ValueError(f"{self.where}: brackets inside brackets in {text!r}")
                elements.append(self._group(source, lead))
            elif "{" in source:
                elements.append(self._mention(source, lead))
            elif elements and isinstance(elements[-1], Literal):
                elements[-1] = Literal(elements[-1].text + lead + source)
            else:
                elements.append(Literal(lead + source))
            lead = " "
        return tuple(elements)

    def _group(self, source: str, lead: str) -> Choice:
        match = _GROUP.match(source)
        if match is None:
            raise ValueError(f"{self.where}: one word holds two pairs of brackets: {source!r}")
        before, wordings, after = match.groups()
        index = self._next_index()
        options = tuple(self._wording(before + w + after, lead, in_group=True) for w in wordings.split("|"))
        return Choice(options, (1,) * len(options), index)

    def _mention(self, source: str, lead: str) -> Mention:
        match = _MENTION.match(source)
        if match is None:
            raise ValueError(f"{self.where}: not a mention of a fact: {source!r}")
        before, article, name, form, after = match.groups()
        capital = name[0].isupper() or (form or name)[0].isupper() or article == "A"
        variable, form = name[0].lower() + name[1:], (form[0].lower() + form[1:]) if form else "it"
        if variable not in self.variables:
            raise ValueError(f"{self.where}: there is no fact named {variable!r}; facts: {', '.join(self.variables)}")
        domain = self.variables[variable]
        if form not in domain.forms:
            raise ValueError(f"{self.where}: {domain.name} has no form {form!r}; it has: {', '.join(domain.forms)}")
        texts, cores = [], []
        for word in domain.forms[form]:
            shown = with_article(word) if article else word
            shown = _capitalised(shown) if capital else shown
            start = len(lead) + len(before) + len(shown) - len(word)
            texts.append(lead + before + shown + after)
            cores.append((start, start + len(word)))
        return Mention(variable, domain, form, bool(article), tuple(texts), tuple(cores))
