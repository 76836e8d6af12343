"""The facts of the stories: which word list each draws from, and how they depend on one another."""

from importlib.resources import files

from rhapsode.storyworld.grammar import Variable, read_domains

_WORDS = read_domains((files("rhapsode.storyworld") / "text" / "words.txt").read_text("utf-8"), "words.txt")


def _fact(name: str, domain: str, **rules: object) -> Variable:
    return Variable(name, _WORDS[domain], **rules)  # type: ignore[arg-type]


VARIABLES = {
    variable.name: variable
    for variable in (
        # The hero (1) and the helper or friend (2).
        _fact("n1", "name"),
        _fact("n2", "name", differs=("n1",)),
        _fact("k1", "kind", only="hero"),
        # What the wind does is out of the hero's reach and within the helper's.
        _fact("trouble", "trouble", avoids=(("k1", "ability"),)),
        _fact("k2", "kind", differs=("k1",), fits=(("trouble", "ability"),)),
        _fact("home", "home"),
        _fact("trait", "trait"),
        _fact("season", "season"),
        # Things and their colours.
        _fact("t1", "thing", combined_with="k1"),
        _fact("b1", "light thing", combined_with="k1"),
        _fact("c1", "colour"),
        _fact("c2", "colour", differs=("c1",)),
        _fact("giver", "giver"),
        _fact("spot", "spot"),
        _fact("inst", "instrument"),
        _fact("food", "food"),
        _fact("item", "item"),
        _fact("count", "count"),
        _fact("prize", "prize"),
        _fact("plant", "plant"),
        # What is said and meant.
        _fact("promise", "promise"),
        _fact("word", "word"),
        _fact("lm1", "landmark"),
        _fact("lm2", "landmark", differs=("lm1",)),
        _fact("turn", "turn"),
        _fact("day", "day"),
        _fact("noise", "noise"),
        _fact("ill", "illness"),
        _fact("wish", "wish"),
        _fact("weather", "weather"),
    )
}
