# Two commands from a fresh clone: `make reproduce` and `make test`. Each first builds the environment in .venv, with the
# exact versions of constraints.txt; the rest are shortcuts.

PYTHON ?= python3
MINIMUM := $(shell sed -n 's/^requires-python = ">=\(.*\)"/\1/p' pyproject.toml)
# Where $(PYTHON) is looked for: not in what it is to replace.
OUTSIDE := $(subst $(CURDIR)/.venv/bin:,,$(PATH))
SNAKEFILES := Snakefile workflow
NUMERIC := pytest -q -n auto --dist loadfile --durations=0 --durations-min=30 tests/learning tests/methods

export PATH := $(CURDIR)/.venv/bin:$(PATH)
export MLFLOW_DISABLE_TELEMETRY := true
export DO_NOT_TRACK := 1

.PHONY: help environment reproduce test arithmetic lint docs ui report check

help:
	@echo "make reproduce    pull the full-precision models, then run everything that is missing or out of date"
	@echo "make test         check style, workflow and types, then run the tests"
	@echo "make arithmetic   the numeric tests as other processors would compute them"
	@echo "make docs         the documentation as a site, in site/; any warning is an error"
	@echo "make ui           compare results in MLflow, on this machine only"
	@echo "make report       report.html: the tables and pictures of all runs that are here, in one file; nothing is computed"
	@echo "make check        compare every file with what was recorded of it"
	@echo "make environment  build .venv and nothing else"

reproduce: environment
	dvc pull data/models || { python -m workflow.damage; exit 1; }
	snakemake

test: lint
	pytest -n auto --dist loadfile

# The numeric tests under the arithmetic of other processors: vectors of other widths, and sums in other orders. The
# last kind leaves the width to the processor, for torch takes a wider one on trust and dies of the first instruction.
arithmetic: environment
	ATEN_CPU_CAPABILITY=default ONEDNN_MAX_CPU_ISA=AVX2 OMP_NUM_THREADS=2 OMP_WAIT_POLICY=PASSIVE $(NUMERIC)
	ATEN_CPU_CAPABILITY=avx2 ONEDNN_MAX_CPU_ISA=AVX512_CORE OMP_NUM_THREADS=1 $(NUMERIC)
	ONEDNN_MAX_CPU_ISA=SSE41 OMP_NUM_THREADS=1 $(NUMERIC)

lint: environment
	ruff check .
	ruff format --check .
	snakefmt --line-length 120 --check $(SNAKEFILES)
	snakemake --lint
	basedpyright

# Its theme advertises its successor, in the place of warnings.
docs: environment
	NO_MKDOCS_2_WARNING=1 mkdocs build --strict --quiet

ui: environment
	quest ui

report: environment
	snakemake --snakefile workflow/report/Snakefile --quiet all --force
	snakemake --snakefile workflow/report/Snakefile --quiet all --report report.html --report-stylesheet workflow/report/page.css

check: environment
	python -m workflow.damage

environment: .venv/.complete

# uv is four times faster than pip, which steps in where uv cannot be had. Without --compile-bytecode every start of
# Python would compile torch and diffusers anew where PYTHONDONTWRITEBYTECODE is set.
.venv/.complete: pyproject.toml constraints.txt
	@PATH="$(OUTSIDE)" $(PYTHON) -c 'import sys; sys.exit(sys.version_info < tuple(map(int, "$(MINIMUM)".split("."))))' \
		|| { echo "$(PYTHON) is no Python $(MINIMUM) or newer; name one, like \`make $(MAKECMDGOALS) PYTHON=python$(MINIMUM)\`" >&2; exit 1; }
	PATH="$(OUTSIDE)" $(PYTHON) -m venv --clear .venv
	.venv/bin/pip install -q 'uv>=0.9' && UV_FIND_LINKS="$${UV_FIND_LINKS:-$$PIP_FIND_LINKS}" \
		.venv/bin/uv pip install -q --compile-bytecode --python .venv/bin/python -e '.[dev]' -c constraints.txt \
		|| .venv/bin/pip install -q -e '.[dev]' -c constraints.txt
	@touch $@
