"""`python -m rhapsode.textbook.explain NAME`: the worked examples without the rest of the package."""

import sys

from rhapsode.textbook.explain import app

try:
    app(prog_name="python -m rhapsode.textbook.explain")
except (ValueError, OSError) as error:
    print(f"error: {error}", file=sys.stderr)
    sys.exit(2)
