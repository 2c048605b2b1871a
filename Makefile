# make demo     from a bare machine to a policy that builds: set-up, demonstrations, training, score, video
# make join     the same for a task that needs both hands; make NAME, for your own config/NAME{,_collect,_start,_coach}.py
# make setup    .venv with the packages of requirements.txt, and OpenGL where it is missing (the default)
# make test     the test suite, on all cores
# make lint     ruff format, ruff check, mypy; and for information syntax nodes per line
# make bench    speed of every part on this machine
# make clean    what `make demo` and the like have made; the installed packages stay (rm -rf .venv)
# make help     these lines
# Every stage is one plain command, printed before it runs. Kill it whenever you like: the next make goes on from there.
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
# Runs that have configs for all four stages: demo, join, and yours.
RUNS := $(patsubst config/%_collect.py,%,$(wildcard config/*_collect.py))
.PHONY: setup test lint bench clean help $(RUNS)
.SECONDARY:

PYTHON ?= python3
VENV ?= .venv
PY := $(VENV)/bin/python
# Set-up leaves it to the first import to compile packages. If that were forbidden, every start would take 5 s longer.
unexport PYTHONDONTWRITEBYTECODE
# nproc obeys OMP_NUM_THREADS, which says nothing about the machine.
CORES := $(shell env -u OMP_NUM_THREADS -u OMP_THREAD_LIMIT nproc 2>/dev/null || echo 1)
GPUS := $(shell nvidia-smi -L 2>/dev/null | grep -c . || true)
# One training process per GPU; two on CPUs, each with half the cores. The numbers do not depend on how many.
RANKS := $(shell if [ $(GPUS) -gt 0 ]; then echo $(GPUS); elif [ $(CORES) -ge 2 ]; then echo 2; else echo 1; fi)
TRAIN := OMP_NUM_THREADS=$(shell echo $$(( $(CORES) / $(RANKS) > 0 ? $(CORES) / $(RANKS) : 1 ))) \
  $(if $(filter 1,$(RANKS)),$(PY),$(VENV)/bin/torchrun --standalone --nproc_per_node=$(RANKS))

setup: $(VENV)/.ready

# Without a GPU, torch's CPU build (0.2 GB) is taken from its own index where that can be reached: PyPI's build for
# Linux brings 3 GB of CUDA libraries. --no-compile: Python compiles what is imported, 0.3 GB less on disk.
TORCH_CPU := https://download.pytorch.org/whl/cpu
GL := libegl1 libgl1 libgl1-mesa-dri libopengl0
RENDERS := $(PY) -c 'from sim import gl; raise SystemExit(gl.gl_backend() == "disable")'

$(VENV)/.ready: requirements.txt
	@$(PYTHON) -c 'import sys; raise SystemExit(sys.version_info < (3, 11))' \
	  || { echo "Python 3.11 or newer is needed; name it with: make setup PYTHON=python3.12"; exit 1; }
	@$(PYTHON) -c 'import ensurepip' 2>/dev/null \
	  || { [ $$(id -u) = 0 ] && apt-get update -qq && apt-get install -y -qq python3-venv; } \
	  || { echo "Python's venv is missing; an administrator installs it with: apt-get install python3-venv"; exit 1; }
	$(PYTHON) -m venv $(VENV)
	@extra=""; \
	if [ $(GPUS) = 0 ] && $(PY) -c 'import urllib.request as u; u.urlopen("$(TORCH_CPU)/torch/", timeout=5)' 2>/dev/null; \
	then extra="--extra-index-url $(TORCH_CPU)"; fi; \
	set -x; $(PY) -m pip install --disable-pip-version-check --no-cache-dir --no-compile $$extra -r requirements.txt
	@$(RENDERS) || if [ $$(id -u) = 0 ]; then \
	  apt-get update -qq; DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends $(GL); fi
	@$(RENDERS) || { echo "Nothing renders here; an administrator installs OpenGL with: apt-get install $(GL)"; exit 1; }
	@du -sh $(VENV)
	@touch $@

# A stage prints its command, runs it, keeps its output in out/<run>/<stage>.txt and notes the minutes, also those of
# failed tries. $(1) is the stage, $(2) the command, $* the run.
define stage
@mkdir -p out/$*; began=$$(date +%s); echo; echo "== $* $(1): $(2)"; \
failed=0; $(2) | tee -i out/$*/$(1).txt || failed=$$?; \
awk -v s=$$(( $$(date +%s) - began )) 'BEGIN { printf "$(1) %.1f min\n", s / 60 }' | tee -a out/$*/minutes.txt; \
[ $$failed = 0 ] && touch $@
endef

out/%/collect.done: config/%_collect.py | setup
	$(call stage,collect,$(PY) sim_rollout.py config/$*_collect.py)
out/%/start.done: out/%/collect.done config/%.py config/%_start.py
	$(call stage,start,$(TRAIN) train.py config/$*.py config/$*_start.py)
out/%/coach.done: out/%/start.done config/%_coach.py
	$(call stage,coach,$(PY) sim_rollout.py config/$*_coach.py)
out/%/train.done: out/%/coach.done config/%.py
	$(call stage,train,$(TRAIN) train.py config/$*.py)
out/%/score.done: out/%/train.done
	$(call stage,score,$(PY) sim_rollout.py --ckpt=out/$* --episodes=100 --video=6)
out/%/blank.done: out/%/train.done
	$(call stage,blank,$(PY) sim_rollout.py --ckpt=out/$* --episodes=100 --instruction= --out=out/$*/blank)

$(RUNS): %: out/%/score.done out/%/blank.done
	@echo; echo "== $*"
	@echo "with the instruction:     $$(grep -m 1 '95% CI' out/$*/score.txt)"
	@echo "instruction blanked:      $$(grep -m 1 '95% CI' out/$*/blank.txt)"
	@echo "minutes:                  $$(paste -sd, out/$*/minutes.txt | sed 's/,/, /g')"
	@echo "videos and contact sheet: out/$*/rollout"
	@echo "next: $(PY) sample.py --ckpt=out/$*"

test: setup
	$(PY) -m pytest -n $(CORES) --dist loadfile --no-loadscope-reorder

lint: setup
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/ruff check .
	$(VENV)/bin/mypy
	@$(PY) tests/nodes.py

bench: setup
	$(PY) bench.py

clean:
	rm -rf $(foreach run,$(RUNS),out/$(run) out/$(run)_start episodes/$(run) episodes/$(run)_coached)
	rm -rf .pytest_cache .mypy_cache .ruff_cache __pycache__ {sim,vla,assets,tests}/__pycache__

help:
	@sed -n 's/^# \(make .*\)/\1/p' Makefile
