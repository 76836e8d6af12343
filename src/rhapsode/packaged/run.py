"""The packaged model as a run directory, for whoever wants one: `rhapsode serve` without a run."""

import hashlib
from dataclasses import asdict
from pathlib import Path

from rhapsode.export.network import unpacked_network
from rhapsode.files import cache_root
from rhapsode.packaged import MODEL, TOKENIZER
from rhapsode.run import Run
from rhapsode.tokenizer import Tokenizer


def packaged_run() -> Path:
    """The directory, in the cache; made when it is first wanted. Raises OSError where that cannot be."""
    packed = MODEL.read_bytes()
    path = cache_root() / "packaged" / hashlib.sha256(packed + TOKENIZER.read_bytes()).hexdigest()[:16] / "storyteller"
    if not (path / "run.json").exists():
        network, tokenizer = unpacked_network(packed), Tokenizer.load(TOKENIZER)
        about = {
            "model": asdict(network.config),
            "tokenizer": tokenizer.fingerprint,
            "imported": MODEL.name,
            "storyworld": "train",
        }
        path.parent.mkdir(parents=True, exist_ok=True)
        Run.create(path, about, tokenizer, network)
    return path
