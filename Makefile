# Everything runs in .venv, which is made on first use and installed from constraints.txt.
PYTHON ?= python3
WORKERS ?= 2

BIN := .venv/bin
INSTALLED := .venv/.installed
PYTEST := $(BIN)/pytest --numprocesses=$(WORKERS)
SPELLING := --ignore-words-list=te,rouge,mane,iif,hass,ines,steams,lenght,revison,provid,generat,describ \
	--skip='.git,.venv,site,build,runs,*.egg-info,.*_cache,.hypothesis,*.jsonl*,constraints.txt,LICENSE'

# Tests need no network; each worker computes on one core.
test test-scale check: export HF_HUB_OFFLINE = 1
test test-scale check: export OMP_NUM_THREADS = 1

.PHONY: docs help demo test test-scale check format names reference dist clean

help:
	@echo "make demo     the whole loop on the built-in example; ends with a report"
	@echo "make test     every test"
	@echo "make test-scale  long tests past one machine; TETHER_VLLM_PYTHON names vLLM's Python"
	@echo "make check    format, lint, types, spelling and every test"
	@echo "make format   format the code and mend what lint can mend"
	@echo "make names    write tests/public_names.txt anew, after a change of the public surface"
	@echo "make reference  write docs/reference/ anew, after a change of settings, commands or texts"
	@echo "make dist     a wheel and a source archive in dist/, and THIRD_PARTY_LICENSES.md anew"
	@echo "make docs     the documents as a site, in site/"
	@echo "make clean    remove .venv and caches; results in runs/ stay"
	@echo "PYTHON=python3.13 names the Python (3.11 or newer), WORKERS=4 the test processes."

demo: $(INSTALLED)
	$(BIN)/tether demo

test: $(INSTALLED)
	$(PYTEST)

test-scale: $(INSTALLED)
	$(BIN)/pytest -m scale

check: $(INSTALLED)
	$(BIN)/ruff format --check
	$(BIN)/ruff check
	$(BIN)/pyright
	$(BIN)/codespell $(SPELLING)
	$(PYTEST)

docs: $(INSTALLED)
	$(BIN)/python tools/site.py

format: $(INSTALLED)
	$(BIN)/ruff format
	$(BIN)/ruff check --fix

names: $(INSTALLED)
	$(BIN)/python -m tests.public_names > .names && mv .names tests/public_names.txt

reference: $(INSTALLED)
	$(BIN)/python -m tools.reference

dist: $(INSTALLED)
	$(BIN)/python tools/third_party_licenses.py > .licenses && mv .licenses THIRD_PARTY_LICENSES.md
	rm -rf dist
	$(BIN)/python -m build

clean:
	rm -rf .venv build dist site src/*.egg-info .pytest_cache .ruff_cache .hypothesis
	find src tests examples benchmarks -name __pycache__ -type d -prune -exec rm -rf {} +

$(INSTALLED): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
		echo "tether needs Python 3.11 or newer, and $(PYTHON) is not; name one: make $(MAKECMDGOALS) PYTHON=python3.12"; \
		exit 1; }
	@$(BIN)/python -m pip --version >/dev/null 2>&1 || { \
		echo "Making .venv with $$($(PYTHON) --version)"; \
		$(PYTHON) -m venv --clear .venv; }
	@echo "Installing tether and the versions of constraints.txt into .venv (once, a few minutes)"
	$(BIN)/python -m pip install --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@touch $@
