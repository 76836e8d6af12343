"""Studies: many small trainings that differ in one thing, run to the end whatever happens, and a report of them.

plans        what is varied: parts, settings, cells
directory    a study on disk: what was asked, what was decided, which cells are finished
cell         one training in a process of its own: python -m rhapsode.studies.cell
runner       all cells, one after another or several at once, with a live table
timing       the scale that fits into so many minutes
statistics   means and spreads; how varied and how repetitive a text is
sentences    what the numbers show, in words
figures      the plots, as SVG and PNG
report       one page of HTML, the same in Markdown, a CSV of every point
"""
