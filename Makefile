# Two commands do all the set-up: `make story` and `make test`.
PYTHON ?= python3
BIN := .venv/bin
TORCH := 2.13.0
TRITON := 3.7.1
export HF_HUB_DISABLE_TELEMETRY := 1

.PHONY: story browser test quick cluster lint format clients bench docs notebooks faults audit lock clean
.DEFAULT_GOAL := story

.venv/installed: requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "Rhapsode needs Python 3.11 or newer; name one with: make PYTHON=python3.12" >&2; exit 2; }
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --disable-pip-version-check torch==$(TORCH)
	$(BIN)/pip install --quiet --disable-pip-version-check --require-hashes --requirement requirements.lock
	$(BIN)/pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation --editable .
	@touch $@

.venv/gpu: .venv/installed    ## Triton (200 MB), whose kernels are tested without a GPU; the tests skip where it cannot be had
	-test "$$(uname -s)" != Linux || $(BIN)/pip install --quiet --disable-pip-version-check triton==$(TRITON)
	@touch $@

.venv/axe: .venv/installed    ## axe-core for the tests of the page, from npm
	npm install --silent --no-fund --no-audit --prefix .venv/axe axe-core@4.14.1

/usr/bin/chromium:            ## the browser that the page is tested in; the tests skip where it cannot be had
	-command -v apt-get > /dev/null && apt-get install --yes --quiet chromium

browser: /usr/bin/chromium
	-command -v npm > /dev/null && $(MAKE) .venv/axe

story: .venv/installed        ## train on the corpus inside the package and print stories
	$(BIN)/rhapsode story

test: .venv/gpu browser lint    ## everything: lint, types, all tests
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

clients: .venv/installed      ## also install lm-evaluation-harness (450 MB), and run its tests against the server
	$(BIN)/pip install --quiet --disable-pip-version-check 'lm-eval>=0.4.13'
	$(BIN)/python -m pytest -q tests/serve/test_lm_eval.py

bench: .venv/installed        ## the speeds of this machine, and how fast it generates and prepares text
	$(BIN)/python benchmarks/training.py
	$(BIN)/python benchmarks/course.py
	$(BIN)/python benchmarks/storyworld.py
	$(BIN)/python benchmarks/prepare.py

docs: .venv/installed         ## write again what is generated: docs/cli.md, textbook.md, resume.md, reliability.md, licences.md
	$(BIN)/python -m typer rhapsode.cli utils docs --name rhapsode > docs/cli.md
	$(BIN)/python -m rhapsode.textbook.chapters > docs/textbook.md
	$(BIN)/python tests/textbook/fast_against_textbook.py >> docs/textbook.md
	$(BIN)/python tests/faults/kill_and_resume.py > docs/resume.md
	$(BIN)/python tests/faults/reliability.py > docs/reliability.md
	$(BIN)/python tests/supply/licences.py > docs/licences.md

notebooks: .venv/installed    ## run the notebooks in place; FILES: what lies beside course.ipynb (data, my_tokenizer)
	$(BIN)/python notebooks/execute.py notebooks/course.ipynb $(if $(FILES),--files $(FILES))
	$(BIN)/python notebooks/execute.py notebooks/quickstart.ipynb
	$(BIN)/python notebooks/execute.py notebooks/research.ipynb

PARTS :=                      # of `make faults`: all, or make faults PARTS="writes kills"
faults: .venv/installed       ## try to break it, in parts of at most 30 minutes; run it again to continue
	$(BIN)/pip install --quiet --disable-pip-version-check --require-hashes --requirement tests/faults/requirements.lock
	$(BIN)/python tests/faults/harness.py $(PARTS)
	$(BIN)/python tests/faults/reliability.py > docs/reliability.md

audit:                        ## ask whether a package in requirements.lock has a known hole; needs a network
	$(PYTHON) -m venv .venv-audit && .venv-audit/bin/pip install --quiet --disable-pip-version-check pip-audit
	.venv-audit/bin/python tests/supply/audit.py
	rm -rf .venv-audit

lock:                         ## resolve requirements.lock anew, for all systems; its versions stay where they can
	$(PYTHON) -m venv .venv-lock && .venv-lock/bin/pip install --quiet --disable-pip-version-check uv
	PATH=$(CURDIR)/.venv-lock/bin:$$PATH .venv-lock/bin/python tests/supply/lock.py
	rm -rf .venv-lock

clean:
	rm -rf .venv .pytest_cache .mypy_cache .ruff_cache .hypothesis
