# Every target does its own set-up. PYTHON chooses the interpreter of the virtual environments.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
VERIFY := .venv-verify
# The compiled core: installed anew when one of its sources changes.
NATIVE := native/CMakeLists.txt $(wildcard native/src/*)
# The reference backend's matrix products are tiny: more BLAS threads only get in each other's way.
ONE_THREAD := OPENBLAS_NUM_THREADS=1 OMP_NUM_THREADS=1 MKL_NUM_THREADS=1
# Long checks and benchmarks read prompts from here: .jsonl files of {"turns": [...]} or {"prompt": ...} lines.
PROMPT_DIR ?= src/elmoe/data

.PHONY: demo test bench verify lint format docs docs-serve clean help

help:
	@echo "make demo    the main job: AR and Elastic-SD answers on the embedded model, proved equal; report.html"
	@echo "make test    the test suite (minutes, no PyTorch)"
	@echo "make lint    ruff and mypy"
	@echo "make docs    the documentation site, in build/site; docs-serve shows it while you write"
	@echo "make bench   benchmarks, JSON in bench/results (PROMPT_DIR=FOLDER)"
	@echo "make verify  comparison with transformers, sanitizers, simulator, server (page, generated requests, soak), the 200-prompt proof, golden files (PROMPT_DIR=FOLDER)"

demo: $(VENV)/.run
	$(ONE_THREAD) $(BIN)/elmoe demo --out demo-output

test: $(VENV)/.dev
	$(ONE_THREAD) $(BIN)/python -m pytest -n 2 --dist loadfile

lint: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(VENV)/.dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# The theme announces the end of MkDocs 1 at every start; docs/log.md has why it is used all the same.
docs: $(VENV)/.dev
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

docs-serve: $(VENV)/.dev
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs serve --livereload

bench: $(VENV)/.dev
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev,bench]'
	$(BIN)/python bench/kernels.py
	$(BIN)/python bench/cost_model.py tiny --name cost_model_tiny
	$(ONE_THREAD) $(BIN)/python bench/speculation.py --prompts $(PROMPT_DIR)
	$(ONE_THREAD) $(BIN)/python bench/elasticity.py --prompts $(PROMPT_DIR)
	$(ONE_THREAD) $(BIN)/python bench/pool.py --prompts $(PROMPT_DIR)
	$(ONE_THREAD) $(BIN)/python bench/sampling_rule.py --prompts $(PROMPT_DIR)
	$(ONE_THREAD) $(BIN)/python bench/cycle_agreement.py
	$(ONE_THREAD) $(BIN)/python bench/rtl_port.py

verify: $(VERIFY)/.verify
	cd tests && $(ONE_THREAD) ../$(VERIFY)/bin/python -m verify.make_golden
	ELMOE_LONG=1 $(ONE_THREAD) $(VERIFY)/bin/python -m pytest -m verify
	cd tests && $(ONE_THREAD) ../$(VERIFY)/bin/python -m verify.sanitize memory
	cd tests && $(ONE_THREAD) ../$(VERIFY)/bin/python -m verify.sanitize threads
	$(ONE_THREAD) $(VERIFY)/bin/python bench/calibrate_simulator.py --markdown
	$(ONE_THREAD) $(VERIFY)/bin/python bench/validation.py
	$(ONE_THREAD) $(VERIFY)/bin/python bench/soak.py tiny --minutes 2 --name soak_verify
	$(ONE_THREAD) $(VERIFY)/bin/python bench/lossless.py --prompts $(PROMPT_DIR) --name lossless_verify

clean:
	rm -rf $(VENV) $(VERIFY) build dist demo-output

$(VENV)/.run: pyproject.toml constraints.txt $(NATIVE)
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[report]'
	touch $@

$(VENV)/.dev: pyproject.toml constraints.txt $(NATIVE)
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev]'
	touch $@ $(VENV)/.run

$(VERIFY)/.verify: pyproject.toml constraints.txt $(NATIVE)
	$(PYTHON) -m venv $(VERIFY)
	$(VERIFY)/bin/python -m pip install --quiet --disable-pip-version-check --editable '.[dev,verify]'
	touch $@
