"""Worked examples of the chapters with real numbers: `rhapsode explain NAME`, in the terminal or as a page.

`commands` is the command line; `convolution`, `recurrent`, `tape`, `attention`, `residual`, `pairs`, `copying` and
`muon` compute the examples; `page` says what an example is made of and prints it; `html` and `drawing` make the web
page with its figures.
"""

from rhapsode.textbook.explain.commands import app

__all__ = ["app"]
