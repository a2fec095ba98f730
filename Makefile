# make run    the quickstart study with two worker processes, ending in a report
# make test   ruff, mypy, pytest
# make test-system  what needs Debian packages: LibreOffice's help, downloaded into build/, and Slurm,
#             chromium and iproute2, where they are installed
# make chaos  2,000 trials while workers are killed and the database, its network and a disk fail
# make setup  the environment both share, in .venv (needs Python 3.11 or newer)

PYTHON ?= python3
VENV ?= .venv
STUDY ?= quickstart
OUT ?= report/$(STUDY)
BIN = $(VENV)/bin

HELP = build/libreoffice-help

.PHONY: setup run test test-system chaos clean

setup: $(VENV)/.installed

$(VENV)/.installed: pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(0 if sys.version_info >= (3, 11) else "robustlr needs Python 3.11 or newer; try: make PYTHON=python3.11 $(MAKECMDGOALS)")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet uv || true
	$(BIN)/python -m uv pip install --quiet --python $(BIN)/python --editable '.[dev]' \
		|| $(BIN)/python -m pip install --quiet --editable '.[dev]'
	touch $@

run: setup
	$(BIN)/robustlr run $(STUDY) --per-device 2 --fuse auto --storage sqlite:///$(STUDY).db --out $(OUT)

test: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/pytest
	$(BIN)/pytest -n 0 tests/chaos

test-system: setup $(HELP)
	ROBUSTLR_LOHELP=$(HELP)/usr/share/libreoffice/help $(BIN)/pytest tests/test_embedded_corpora.py
	$(BIN)/pytest -n 0 -rs tests/system

chaos: setup
	$(BIN)/python -m tests.chaos

$(HELP):
	rm -rf $@.partial && mkdir -p $@.partial
	cd $@.partial && apt-get download --quiet libreoffice-help-en-us libreoffice-help-de
	for package in $@.partial/*.deb; do dpkg-deb -x $$package $@.partial || exit 1; done
	mv $@.partial $@

clean:
	rm -rf $(VENV) build report robustlr-trials *.db *.db-shm *.db-wal
