PY := .venv/bin/python
export TOKENIZERS_PARALLELISM := false
WORKERS ?= 2

.PHONY: help install install-eval demo test test-real soak bench lint
help:            ## this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*##/\t/' | expand -t 12

install: .venv/.installed   ## a virtual environment in .venv (the other targets do this by themselves)
.venv/.installed: pyproject.toml constraints.txt
	python3 -m venv .venv
	$(PY) -m pip install -q --disable-pip-version-check -c constraints.txt torch
	$(PY) -m pip install -q --disable-pip-version-check -c constraints.txt -e ".[dev]"
	touch $@

install-eval: install   ## lm-eval as well (460 MB, 50 packages): python -m tutelage.lm_eval, and its tests run
	$(PY) -m pip install -q --disable-pip-version-check -c constraints.txt -e ".[dev,eval]"

demo: install    ## raw text to chat assistant on the embedded world: table, summary.json, report.html in runs/demo
	.venv/bin/tutelage run recipes/demo.toml out=runs/demo

# two processes of one thread each: small models gain nothing from a second thread
test: install    ## the tests, in minutes; no data needed (WORKERS=1: one after another)
	OMP_NUM_THREADS=1 $(PY) -m pytest -n $(WORKERS) --dist worksteal -m "not real and not slow"

test-real: install   ## the tests on real data and models (TUTELAGE_DATA names their folder)
	$(PY) -m pytest -m real

soak: install    ## hours: 20 kills of the demo, 50 over all stages, the real-data chains in full, the studies; results in runs/soak
	$(PY) benchmarks/kill_campaign.py --kills 20 --recipe recipes/demo.toml --out runs/soak/kills
	$(PY) benchmarks/kill_campaign.py --kills 50 --recipe benchmarks/endurance.toml --out runs/soak/kills-everywhere
	$(PY) benchmarks/real_text.py --full
	$(PY) benchmarks/real_reward.py --full --control --speed
	$(PY) benchmarks/real_rlhf.py --full
	$(PY) benchmarks/why_it_works.py --out runs/soak/why

lint: install    ## ruff and mypy
	.venv/bin/ruff check src tests $(wildcard benchmarks)
	.venv/bin/mypy

bench: install   ## speed
	$(PY) benchmarks/speed.py
