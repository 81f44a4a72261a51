PY := .venv/bin/python
export TOKENIZERS_PARALLELISM := false

.PHONY: demo test test-real bench lint install
install: .venv/.installed
.venv/.installed: pyproject.toml constraints.txt
	python3 -m venv .venv
	$(PY) -m pip install -q --disable-pip-version-check -c constraints.txt torch
	$(PY) -m pip install -q --disable-pip-version-check -c constraints.txt -e ".[dev]"
	touch $@

demo: install
	.venv/bin/tutelage run recipes/demo.toml out=runs/demo

test: install
	$(PY) -m pytest -m "not real and not slow"

test-real: install
	$(PY) -m pytest -m real

lint: install
	.venv/bin/ruff check src tests
	.venv/bin/mypy

bench: install
	$(PY) benchmarks/speed.py
