"""A trained model inside the package: `rhapsode tell` and `rhapsode serve` have one at once. ABOUT.md says whence.

teller.py reads it with NumPy alone, since importing PyTorch takes longer than telling a story; make.py made it.
"""

from pathlib import Path

FOLDER = Path(__file__).parent
MODEL, TOKENIZER, ABOUT = FOLDER / "model.packed", FOLDER / "tokenizer.json", FOLDER / "ABOUT.md"
