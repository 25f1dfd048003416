# The book and its library. `make help` lists what can be asked for.
PYTHON ?= python3
PROFILE ?= quick
CHAPTERS ?=
NAME ?=
# where the repository and the site can be found: the site then links to both
REPOSITORY ?=
ADDRESS ?=

VENV := .venv
PY := $(VENV)/bin/python
# changing the lock or the package's requirements makes this file out of date
STAMP := $(VENV)/.installed
PIP := $(PY) -m pip install -qq --disable-pip-version-check
# a file's tests stay in one process, the long files first
PYTEST := $(PY) -m pytest -q -n auto --dist loadfile --no-loadscope-reorder
STYLE := $(VENV)/bin/ruff check . && $(VENV)/bin/ruff format --check . && $(VENV)/bin/mypy
SITE := $(PY) -m tools.book site --repository "$(REPOSITORY)" --address "$(ADDRESS)"

.PHONY: help env book site archive check quick test paths record lock clean
.DEFAULT_GOAL := help

help: ## this list
	@awk -F ':.*## ' '/^[a-z]+:.*## / {printf "  make %-8s%s\n", $$1, $$2}' $(MAKEFILE_LIST)
	@echo
	@echo "  make book CHAPTERS=\"05 07\"   only these chapters"
	@echo "  make book PROFILE=full       paper scale, on a GPU; the results go to book/records"
	@echo "  make site REPOSITORY=... ADDRESS=...   for a public site: launch buttons, sitemap, previews"
	@echo "  make PYTHON=python3.12 ...   build .venv with another Python"

env: $(STAMP) ## create .venv with the exact versions of requirements.lock

$(STAMP): requirements.lock requirements-data.lock pyproject.toml
	@$(PYTHON) -c 'import sys; v = sys.version_info; sys.exit(0 if v >= (3, 11) else "$(PYTHON) is Python %d.%d, the book needs 3.11 or newer: make PYTHON=/path/to/python3.11 ..." % v[:2])'
	@test -x $(VENV)/bin/pip || $(PYTHON) -m venv $(VENV)
	@echo "Installing into $(VENV): about 200 packages the first time, some minutes ..."
	@$(PIP) -r requirements.lock
	@$(PIP) --no-deps -r requirements-data.lock
	@$(PIP) --no-deps --no-build-isolation -e .
	@# converts the default model into the cache, once, so that no chapter has to
	@$(PY) -c "from sae_lib import language_models; language_models.load()"
	@touch $@

book: env ## execute the chapters and build the site
	@$(PY) -m tools.book run --profile $(PROFILE) $(CHAPTERS)
	@$(SITE)

site: env ## build the site from the committed notebooks, executing nothing
	@$(SITE)

archive: env ## build the site and pack it into one file, _build/book.zip, to read offline
	@$(SITE) --archive

check: env ## list the notebooks that are out of date, and why
	@$(PY) -m tools.book check

quick: env ## style, types and those tests of the library that take seconds: two minutes
	$(STYLE)
	$(PYTEST) tests/library -m "not slow"

test: env ## style, types, all tests, then every notebook executed again and compared
	$(STYLE)
	$(PYTEST)
	$(PY) -m tools.book verify

paths: env ## execute the book as other processors would, and with other seeds; compare every number
	@$(PY) -m tools.book verify --paths --record

record: env ## make a record of the book again, by the command that it states: NAME=10_search
	@$(PY) -m sae_experiments.records $(NAME)

lock: env ## write requirements.lock anew from what is installed in .venv
	@{ sed '/^#/!d' requirements.lock; $(PY) -m pip freeze --all --exclude pip --exclude-editable \
		| grep -viFf requirements-data.lock | sed -E 's/\+[a-z0-9]+$$//; s/^(triton==.*)/\1 ; platform_system == "Linux"/'; \
	} > .lock.partial && mv .lock.partial requirements.lock

clean: ## remove what was built; .venv stays
	rm -rf _build runs book/status.md book/claims.md book/quizzes.md book/front.html .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -not -path './$(VENV)/*' -prune -exec rm -rf {} +
