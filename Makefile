# Two commands do all the set-up: `make story` and `make test`.
PYTHON ?= python3
BIN := .venv/bin
export HF_HUB_DISABLE_TELEMETRY := 1

.PHONY: story test quick cluster lint format bench docs notebooks lock clean
.DEFAULT_GOAL := story

.venv/installed: requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "Rhapsode needs Python 3.11 or newer; name one with: make PYTHON=python3.12" >&2; exit 2; }
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --disable-pip-version-check --requirement requirements.lock
	$(BIN)/pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation --editable .
	@touch $@

story: .venv/installed        ## train on the corpus inside the package and print stories
	$(BIN)/rhapsode story

test: .venv/installed lint    ## everything: lint, types, all tests
	$(BIN)/python -m pytest -q

quick: .venv/installed        ## the tests that take seconds
	$(BIN)/python -m pytest -q -m "not slow"

cluster: .venv/installed      ## studies on Ray, with a real one of two workers on this machine
	$(BIN)/pip install --quiet --disable-pip-version-check 'ray>=2.40'
	$(BIN)/python -m pytest -q tests/studies/test_study_engines.py

lint: .venv/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: .venv/installed
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: .venv/installed        ## the speeds of this machine, and how fast it generates and prepares text
	$(BIN)/python benchmarks/training.py
	$(BIN)/python benchmarks/course.py
	$(BIN)/python benchmarks/storyworld.py
	$(BIN)/python benchmarks/prepare.py

docs: .venv/installed         ## write again what is generated: docs/cli.md, docs/textbook.md, docs/resume.md
	$(BIN)/python -m typer rhapsode.cli utils docs --name rhapsode > docs/cli.md
	$(BIN)/python -m rhapsode.textbook.chapters > docs/textbook.md
	$(BIN)/python tests/textbook/fast_against_textbook.py >> docs/textbook.md
	$(BIN)/python tests/faults/kill_and_resume.py > docs/resume.md

notebooks: .venv/installed    ## run the notebooks in place; FILES: what lies beside course.ipynb (data, my_tokenizer)
	$(BIN)/python notebooks/execute.py notebooks/course.ipynb $(if $(FILES),--files $(FILES))
	$(BIN)/python notebooks/execute.py notebooks/quickstart.ipynb
	$(BIN)/python notebooks/execute.py notebooks/research.ipynb

lock:                         ## resolve requirements.lock anew, in a throw-away environment
	rm -rf .venv-lock && $(PYTHON) -m venv .venv-lock
	.venv-lock/bin/pip install --quiet torch==2.13.0 hatchling && .venv-lock/bin/pip install --quiet --editable '.[dev]'
	.venv-lock/bin/pip freeze --exclude-editable | sed 's/+cpu//' > requirements.lock
	rm -rf .venv-lock

clean:
	rm -rf .venv .pytest_cache .mypy_cache .ruff_cache .hypothesis
