"""The references in the beginning of a story: a text that is not finished yet, or leaves the grammar somewhere."""

from rhapsode.storyworld.distribution import Distribution
from rhapsode.storyworld.prediction import StoryFilter


def finish(distribution: Distribution, text: str) -> tuple[str, int]:
    """A story that begins as the text does, for as many of its characters as any story has; and how many those are.

    It is finished by what is likeliest, fragment by fragment.
    """
    stories = StoryFilter(distribution, lambda fragment: tuple(map(ord, fragment or "")))
    followed = next((place for place, character in enumerate(text) if not stories.read(ord(character))), len(text))
    rest: list[str] = []
    while True:
        likeliest = max(stories.hypotheses, key=lambda hypothesis: hypothesis.weight)
        if likeliest.fragment is None:
            return text[:followed] + "".join(rest), followed
        for symbol in likeliest.symbols[likeliest.read :]:
            stories.read(symbol)
            rest.append(chr(symbol))
