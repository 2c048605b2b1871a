# make demo     from a bare machine to a policy that builds: set-up, demonstrations, training, score, video
# make join     the same for a task that needs both hands; make NAME, for your own config/NAME{,_collect,_start,_coach}.py
# make robust   the demo's task in other rooms and with late actions, after make demo; no good policy yet
# make all      one policy for all tasks but build, told by words, after make demo: 2 CPU cores, 3.5 hours by estimate
# make all_gpu  the same in the plain EO-1 shape, without a coach: one H100 and 16 cores, 9 min; not run yet
# make setup    .venv with the packages of requirements.txt, OpenGL where it is missing (the default); TORCH=cuda|cpu
# make test     the test suite, on all cores
# make lint     ruff format, ruff check, mypy; and for information syntax nodes per line
# make bench    speed of every part on this machine
# make pictures films the expert anew: docs/build.gif, docs/tasks.png, docs/place.png
# make clean    what `make demo` and the like have made; the installed packages stay (rm -rf .venv)
# make help     these lines
# Every stage is one plain command, printed before it runs. Kill it whenever you like: the next make goes on from there.
# PY=python3 takes an environment that is there and sets up none. COLLECT_ARGS, SIGHT_ARGS, START_ARGS, COACH_ARGS,
# TRAIN_ARGS and SCORE_ARGS are appended to their stage's command: make demo SCORE_ARGS=--episodes=20
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
# Runs that have configs for all four stages: demo, join, all, and yours; and those without a coach.
RUNS := $(patsubst config/%_coach.py,%,$(wildcard config/*_coach.py))
PLAIN := $(filter-out $(RUNS),$(patsubst config/%_collect.py,%,$(wildcard config/*_collect.py)))
.PHONY: setup test lint bench pictures clean help $(RUNS) $(PLAIN)
.SECONDARY:

PYTHON ?= python3
VENV ?= .venv
ifeq ($(origin PY),undefined)
PY := $(VENV)/bin/python
READY := $(VENV)/.ready
endif
# Set-up leaves it to the first import to compile packages. If that were forbidden, every start would take 5 s longer.
unexport PYTHONDONTWRITEBYTECODE
# nproc obeys OMP_NUM_THREADS, which says nothing about the machine.
CORES := $(shell env -u OMP_NUM_THREADS -u OMP_THREAD_LIMIT nproc 2>/dev/null || echo 1)
GPUS := $(shell nvidia-smi -L 2>/dev/null | grep -c . || true)
# One training process per GPU. On CPUs one per core, which computes with one thread: two of them beat one of two threads.
# So many that batches of 128 divide by them, 16 at most. The numbers do not depend on how many.
RANKS := $(shell n=1; while [ $$((2 * n)) -le $(CORES) ] && [ $$n -lt 16 ]; do n=$$((2 * n)); done; \
  if [ $(GPUS) -gt 0 ]; then echo $(GPUS); else echo $$n; fi)
TRAIN := OMP_NUM_THREADS=$(shell echo $$(( $(CORES) / $(RANKS) > 0 ? $(CORES) / $(RANKS) : 1 ))) \
  $(PY) $(if $(filter-out 1,$(RANKS)),-m torch.distributed.run --standalone --nproc_per_node=$(RANKS))

setup: $(READY)

# TORCH=cpu, the default where there is no GPU: torch's CPU build (0.2 GB) is taken from its own index where that can be
# reached. TORCH=cuda is PyPI's build for Linux, with 3 GB of CUDA libraries; it is for login nodes, too, that have no GPU
# and install for those that do. A .venv that has the other build gets this one. --no-compile: Python compiles what is
# imported, 0.3 GB less on disk.
TORCH_CPU := https://download.pytorch.org/whl/cpu
TORCH ?= $(if $(filter 0,$(GPUS)),cpu,cuda)
ifeq ($(filter cuda cpu,$(TORCH)),)
$(error TORCH=$(TORCH): expected cuda or cpu)
endif
# What was set up before says which build it has; the file of earlier revisions is empty.
ifneq ($(filter command environment,$(firstword $(origin TORCH))),)
ifneq ($(filter-out $(TORCH),$(shell cat $(VENV)/.ready 2>/dev/null)),)
OTHER_BUILD := yes
endif
endif
GL := libegl1 libgl1 libgl1-mesa-dri libopengl0
RENDERS := $(PY) -c 'from sim import gl; raise SystemExit(gl.gl_backend() == "disable")'

ifdef OTHER_BUILD
.PHONY: $(VENV)/.ready
endif
$(VENV)/.ready: requirements.txt
	@$(PYTHON) -c 'import sys; raise SystemExit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' \
	  || { echo "Python 3.11 to 3.13 is needed; name it with: make setup PYTHON=python3.12"; exit 1; }
	@$(PYTHON) -c 'import ensurepip' 2>/dev/null \
	  || { [ $$(id -u) = 0 ] && apt-get update -qq && apt-get install -y -qq python3-venv; } \
	  || { echo "Python's venv is missing; an administrator installs it with: apt-get install python3-venv"; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(if $(OTHER_BUILD),$(PY) -m pip uninstall --yes --quiet torch)
	@extra=""; \
	if [ $(TORCH) = cpu ] && $(PY) -c 'import urllib.request as u; u.urlopen("$(TORCH_CPU)/torch/", timeout=5)' 2>/dev/null; \
	then extra="--extra-index-url $(TORCH_CPU)"; fi; \
	set -x; $(PY) -m pip install --disable-pip-version-check --no-cache-dir --no-compile $$extra -r requirements.txt
	@$(RENDERS) || if [ $$(id -u) = 0 ]; then \
	  apt-get update -qq; DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends $(GL); fi
	@$(RENDERS) || { echo "Nothing renders here; an administrator installs OpenGL with: apt-get install $(GL)"; exit 1; }
	@du -sh $(VENV)
	@echo $(TORCH) > $@

# A stage prints its command, runs it, keeps its output in out/<run>/<stage>.txt and notes the minutes, also those of
# failed tries. $(1) is the stage, $(2) the command, $* the run.
define run
@mkdir -p out/$*; began=$$(date +%s); echo; echo "== $* $(1): $(strip $(2))"; \
failed=0; $(2) | tee -i out/$*/$(1).txt || failed=$$?; \
awk -v s=$$(( $$(date +%s) - began )) 'BEGIN { printf "$(1) %.1f min\n", s / 60 }' | tee -a out/$*/minutes.txt; \
[ $$failed = 0 ]
endef
define stage
$(run)
@touch $@
endef
# A training that was told to stop early has saved, and is not done.
define lesson
$(run)
@! grep -q 'stopped at step' out/$*/$(1).txt || { echo "make $* goes on from there"; exit 1; }
@touch $@
endef
SCORE = $(PY) sim_rollout.py --ckpt=out/$* --episodes=100 --blank --video=6 $(wildcard config/$*_score.py) $(SCORE_ARGS)

out/%/collect.done: config/%_collect.py | setup
	$(call stage,collect,$(PY) sim_rollout.py config/$*_collect.py $(COLLECT_ARGS))
out/%/start.done: out/%/collect.done config/%.py config/%_start.py
	$(call lesson,start,$(TRAIN) train.py config/$*.py config/$*_start.py $(START_ARGS))
out/%/sight.done: out/%/collect.done config/%.py config/%_sight.py
	$(call lesson,sight,$(TRAIN) train.py config/$*.py config/$*_sight.py $(SIGHT_ARGS))
out/%/coach.done: out/%/start.done config/%_coach.py
	$(call stage,coach,$(PY) sim_rollout.py config/$*_coach.py $(COACH_ARGS))
out/%/train.done: out/%/coach.done config/%.py
	$(call lesson,train,$(TRAIN) train.py config/$*.py $(TRAIN_ARGS))
out/%/score.done: out/%/train.done
	$(call stage,score,$(SCORE))
# A lesson in seeing comes before the one in acting.
out/all/start.done: out/all/sight.done
# They go on from the demo's weights, and robust from its episodes, too.
out/all/sight.done out/robust/start.done: out/demo/train.done

define said
@echo; echo "== $*"; grep '95% CI [0-9]' out/$*/score.txt; sed -n '/^task .*per hour/,/^mean/p' out/$*/score.txt
@echo "minutes: $$(paste -sd, out/$*/minutes.txt | sed 's/,/, /g')"
@echo "scores, videos and contact sheets: out/$*/rollout"
@echo "next: $(PY) sample.py --ckpt=out/$*"
endef

$(RUNS): %: out/%/score.done
	$(said)

# Training and score may have been ended by their max_minutes: typed again they go on, and what is done says so.
$(PLAIN): %: out/%/collect.done config/%.py
	$(call run,train,$(TRAIN) train.py config/$*.py $(TRAIN_ARGS))
	$(call run,score,$(SCORE))
	$(said)

test: setup
	$(PY) -m pytest -n $(CORES) --dist loadfile --no-loadscope-reorder

lint: setup
	$(PY) -m ruff format --check .
	$(PY) -m ruff check .
	$(PY) -m mypy
	@$(PY) tests/nodes.py

bench: setup
	$(PY) bench.py

# The films behind them stay in out/pictures. Seeds are those whose scenes show most.
FILM := $(PY) sim_rollout.py --cameras= --episodes=1 --video=1
pictures: setup
	$(FILM) --task=all --seeds=700001 --video_speed=5 --out=out/pictures
	cp out/pictures/tasks.png docs/tasks.png
	$(FILM) --task=place --seeds=1000007 --out=out/pictures/one
	cp out/pictures/one/sheet.png docs/place.png
	$(FILM) --task=join --seeds=1000000 --out=out/pictures/join
	$(FILM) --plan=assets/plans/tower.yaml --seeds=1000000 --video_speed=8 --out=out/pictures/tower
	$(PY) -c 'import glob; from sim.film import save_gif; \
	save_gif([glob.glob(f"out/pictures/{run}/*.mp4")[0] for run in ("join", "tower")], "docs/build.gif")'
	@ls -l docs/*.png docs/*.gif

clean:
	rm -rf $(foreach run,$(RUNS) $(PLAIN),out/$(run) out/$(run)_start out/$(run)_sight)
	rm -rf $(foreach run,$(RUNS) $(PLAIN),episodes/$(run) episodes/$(run)_coached)
	rm -rf .pytest_cache .mypy_cache .ruff_cache __pycache__ {sim,vla,assets,tests}/__pycache__

help:
	@sed -n 's/^# \(make .*\)/\1/p' Makefile
