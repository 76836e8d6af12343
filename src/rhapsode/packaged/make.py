"""The packaged model is made by `python -m rhapsode.packaged.make --minutes 20`: trained on storyworld, and packed."""

import argparse
import tempfile
import time
from pathlib import Path

from rhapsode.files import replacing, write_text
from rhapsode.packaged import ABOUT, FOLDER, MODEL, TOKENIZER

MOST_BYTES = 1_500_000  # of the packed model
# What the minutes are for, in a model small enough: a smaller table of pairs than the presets have.
SMALLER = {"pair_embeddings": 4096, "copy_dim": 64}

ABOUT_PAGE = """# The packaged model

`model.packed` is a small language model that `rhapsode tell` writes stories with. It was made by this package alone,
from the stories of its own grammar (storyworld); no text of anyone else is in it. It may be used under the package's
licence (MIT).

Made again by: `python -m rhapsode.packaged.make --minutes {minutes:g}`

| | |
|---|---|
| made with | rhapsode {version}, {date} |
| trained on | storyworld, {minutes:g} minutes, {tokens:,} tokens, preset {preset} |
| parameters | {parameters:,}, packed in {size:,} bytes (int8, a scale per row) |
| bits per byte, 300 unseen stories | {bits:.4f}; before packing {before:.4f}; the floor is {floor:.4f} |
"""


def make_packaged(minutes: float, preset: str = "minute", folder: Path = FOLDER) -> None:
    """Trains, packs, measures and writes the three files. Raises ValueError where the model is over MOST_BYTES."""
    import rhapsode
    from rhapsode import storyworld
    from rhapsode.export.network import packed_network, unpacked_network
    from rhapsode.scoring import scored, tokens_to_score
    from rhapsode.sources import SourceConfig

    with tempfile.TemporaryDirectory() as temporary:
        model = rhapsode.train(preset=preset, minutes=minutes, model=SMALLER, out=Path(temporary) / "run", show=True)
        assert model.run is not None
        packed = packed_network(model.network)
        if len(packed) > MOST_BYTES:
            raise ValueError(f"the packed model has {len(packed):,} bytes, more than {MOST_BYTES:,}: make it smaller")
        store, _ = tokens_to_score(model.run, ("storyworld:300:valid",), SourceConfig("auto"), True)
        before, bits = (scored(each, store).bits_per_byte for each in (model.network, unpacked_network(packed)))
        model.tokenizer.save(Path(temporary) / "tokenizer")
        about = ABOUT_PAGE.format(
            minutes=minutes,
            preset=preset,
            version=rhapsode.__version__,
            date=time.strftime("%Y-%m-%d"),
            tokens=model.metrics[-1]["tokens"],
            parameters=sum(parameter.numel() for parameter in model.network.parameters()),
            size=len(packed),
            bits=bits,
            before=before,
            floor=storyworld.entropy("valid").bits_per_byte,
        )
        write_text(folder / TOKENIZER.name, (Path(temporary) / "tokenizer" / "tokenizer.json").read_text("utf-8"))
        write_text(folder / ABOUT.name, about)
        with replacing(folder / MODEL.name) as file:
            file.write_bytes(packed)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=20.0)
    parser.add_argument("--preset", default="minute")
    given = parser.parse_args()
    make_packaged(given.minutes, given.preset)
