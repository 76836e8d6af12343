"""The questions as one web page that needs nothing else, each with its answer and steps folded away."""

from collections.abc import Sequence

from rhapsode.textbook.explain.html import with_code
from rhapsode.textbook.explain.page import Lines, PageBlock, Text
from rhapsode.textbook.explain.quiz.answers import ChoiceAnswer
from rhapsode.textbook.explain.quiz.question import Question

TEMPLATE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>{{ title }}</title>
<style>
  :root { color-scheme: light dark; --ink: #22303c; --soft: #55636f; --page: #fff; --pale: #f5f7f9; --line: #d5dce2;
          --accent: #b34429; --second: #2a6f97; }
  @media (prefers-color-scheme: dark) {
    :root { --ink: #e3e8ec; --soft: #a3b0bb; --page: #14191e; --pale: #1e252c; --line: #38434d; --accent: #f08a6c;
            --second: #7dbbe0; }
  }
  * { box-sizing: border-box; }
  body { max-width: 46rem; margin: 2.5rem auto; padding: 0 1.1rem; color: var(--ink); background: var(--page);
         font: 17px/1.6 Charter, "Bitstream Charter", Georgia, serif; overflow-wrap: break-word; }
  h1 { font-size: 1.8rem; line-height: 1.25; border-bottom: 3px solid var(--accent); padding-bottom: .5rem; }
  h2 { font-size: 1.1rem; margin: 0 0 .4rem; }
  h2 span { color: var(--soft); font-weight: normal; }
  .how, .form { color: var(--soft); font-size: .92em; }
  article { border-top: 1px solid var(--line); padding: 1.3rem 0; }
  article:first-of-type { border-top: 0; }
  pre { background: var(--pale); border-left: 3px solid var(--second); padding: .7rem .9rem; overflow-x: auto;
        font: 13px/1.5 "DejaVu Sans Mono", Menlo, Consolas, monospace; }
  ol { list-style: lower-alpha; padding-left: 1.8rem; }
  li::marker { color: var(--soft); }
  code { font: .85em "DejaVu Sans Mono", Menlo, Consolas, monospace; background: var(--pale); padding: .1em .3em;
         border-radius: 3px; }
  details { border: 1px solid var(--line); border-radius: 6px; padding: 0 .9rem; }
  summary { cursor: pointer; padding: .55rem 0; color: var(--second); font-weight: bold; }
  .answer { border-left-color: var(--accent); font-weight: bold; }
  .room { display: none; }
  @media (max-width: 30rem) {
    pre { font-size: 10.5px; padding: .6rem; }
    details { padding: 0 .5rem; }
  }
  @media print {
    :root { color-scheme: light; --ink: #000; --soft: #444; --page: #fff; --pale: #fff; --line: #999; --accent: #000;
            --second: #777; }
    @page { margin: 1.8cm; }
    body { margin: 0; max-width: none; padding: 0; font-size: 10pt; line-height: 1.4; }
    p, pre, ol { margin: .25cm 0; }
    pre { white-space: pre-wrap; padding: .2rem .8rem; font-size: 9pt; }
    article { break-inside: avoid; padding: .35cm 0; }
    details:not([open]), .how { display: none; }
    .room { display: block; height: 2.5cm; }
    article:has(details[open]) .room { display: none; }
    article:has(details[open]) { break-inside: auto; }
  }
</style>
</head>
<body>
{% macro shown(blocks) %}
{% for kind, content in blocks %}
{% if kind == "text" %}<p>{{ content }}</p>
{% else %}<pre>{{ content }}</pre>
{% endif %}
{% endfor %}
{% endmacro %}
<h1>{{ title }}</h1>
<p class="how">Answers and steps are folded away below each question; only those that are open are printed. To be
answer these in a terminal and have the answers checked: <code>{{ again }}</code></p>
{% for question in questions %}
<article>
<h2>{{ loop.index }}. <span>{{ question.topic }}</span></h2>
{{ shown(question.blocks) }}
{% if question.options %}
<ol>
{% for option in question.options %}
<li>{{ option }}</li>
{% endfor %}
</ol>
{% endif %}
<p class="form">Give {{ question.form }}.</p>
<div class="room"></div>
<details>
<summary>Answer and steps</summary>
{{ shown(question.steps) }}
<pre class="answer">{{ question.answer }}</pre>
{% if question.example %}
<p class="form">The full example: <code>rhapsode explain {{ question.example }}</code></p>
{% endif %}
</details>
</article>
{% endfor %}
</body>
</html>
"""


def to_html(questions: Sequence[Question], title: str, again: str) -> str:
    """The page. again: the command that asks the same questions. Raises ValueError if jinja2 is not installed."""
    try:
        import jinja2
    except ImportError as error:
        raise ValueError(f"--html needs {error.name}: pip install 'rhapsode[study]'") from error

    asked = [
        {
            "topic": question.topic,
            "blocks": _for_template(question.blocks),
            "options": question.answer.options if isinstance(question.answer, ChoiceAnswer) else (),
            "form": question.answer.form,
            "steps": _for_template(question.steps),
            "answer": "\n".join(question.answer.lines()),
            "example": question.command,
        }
        for question in questions
    ]
    environment = jinja2.Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
    return environment.from_string(TEMPLATE).render(title=title, again=again, questions=asked)


def _for_template(blocks: Sequence[PageBlock]) -> list[tuple[str, str]]:
    """Kind and content of each block; a content that is no Markup is escaped by the template."""
    from markupsafe import Markup, escape

    return [
        ("text", Markup(with_code(str(escape(block.text)))))
        if isinstance(block, Text)
        else ("lines", "\n".join(block.lines) if isinstance(block, Lines) else "")
        for block in blocks
    ]
