"""The report of a study: chapters of sentences, figures, tables and completions, as HTML and as Markdown.

chapters.py     what is said and shown of each part, of the cells' results
sentences.py    a sentence computed from numbers
figures.py      plots, as SVG and PNG
markdown.py     texts and tables in Markdown, shown as they are
page.py         all of it on one page, and the settings below it
templates/      the page's two forms
"""
