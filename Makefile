# Everything a fresh machine needs is Python 3.11 and make: `make demo` and `make test` set themselves up.
PYTHON ?= python3.11
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt

.PHONY: demo test lint types unit build wheel docs clean

demo: $(VENV)/.installed  ## install, run the main job on embedded input, show the result
	$(BIN)/vecsurgery demo

test: lint types unit  ## everything that has to hold before a change lands

lint: $(VENV)/.installed-test
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .

types: $(VENV)/.installed-test
	$(BIN)/mypy

unit: $(VENV)/.installed-test
	$(BIN)/python -m pytest -n auto

build: $(VENV)/.installed-test  ## a wheel and a source archive in dist/
	rm -rf dist && $(BIN)/python -m pip wheel --quiet --no-deps --wheel-dir dist .

wheel: build  ## the wheel in an environment of its own runs both demos from another folder
	rm -rf build/wheel && mkdir -p build/wheel/elsewhere
	$(PYTHON) -m venv build/wheel/venv
	build/wheel/venv/bin/python -m pip install --quiet --disable-pip-version-check -c constraints.txt torch
	build/wheel/venv/bin/python -m pip install --quiet --disable-pip-version-check -c constraints.txt dist/*.whl
	cd build/wheel/elsewhere && ../venv/bin/vecsurgery demo && ../venv/bin/vecsurgery demo reasoning

docs: $(VENV)/.installed-test  ## the tables in README and docs that are made from the code
	$(BIN)/python docs/generate.py

clean:
	rm -rf $(VENV) dist build

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)

# torch first and alone: another release would bring gigabytes of accelerator libraries along.
$(VENV)/.installed: pyproject.toml constraints.txt | $(VENV)/bin/python
	$(PIP) torch
	$(PIP) --editable .
	touch $@

$(VENV)/.installed-test: $(VENV)/.installed
	$(PIP) --editable '.[test]'
	touch $@
