# Two commands on a fresh machine: `make demo` and `make test`.
VENV ?= .venv
PYTHON ?= python3
BIN := $(VENV)/bin
DEMO_OUT ?= demo-out

.PHONY: demo test lint type docs site bench faults install clean

install: $(VENV)/.installed

$(VENV)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[dev]"
	touch $@

demo: install
	$(BIN)/camray audit demo/archive $(DEMO_OUT) --model demo/models/hans64-poisoned --overlays all --engine ray
	@$(BIN)/python demo/show.py $(DEMO_OUT)
	@$(BIN)/python -m demo.judge $(DEMO_OUT)

test: install
	$(BIN)/python -m pytest -n 2 --dist loadfile

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

type: install
	$(BIN)/mypy

docs: install
	$(BIN)/python -m docs.generate

site: install
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet

bench: install
	$(BIN)/python bench/all.py

faults: install
	$(BIN)/python -m pytest -m faults

clean:
	rm -rf $(DEMO_OUT) build dist site *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
