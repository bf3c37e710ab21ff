# `make run` and `make test` do all set-up themselves; `make help` lists the rest.
VENV ?= .venv
PYTHON ?= python3.11
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
PROFILE ?= quick
PORT ?= 8080
WORKERS ?= 3
export OMP_NUM_THREADS ?= 1
export MLFLOW_DISABLE_TELEMETRY ?= true
export DO_NOT_TRACK ?= true
export ITERATIVE_DO_NOT_TRACK ?= 1
export DVC_NO_ANALYTICS ?= 1
export GX_ANALYTICS_ENABLED ?= false

.DEFAULT_GOAL := help
.PHONY: help run test setup fmt lint types check e2e bench train acceptance smoke frozen curve compile manifests intro espeak tools

help: ## List the targets
	@grep -hE '^[a-z0-9]+:.*##' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-11s %s\n", $$1, $$2}'

# pip would compile 44 000 files one after the other, for more than a minute; half of them nobody here imports.
NOT_COMPILED := site-packages/(.*/)?(plotly/validators|plotly/graph_objs/[a-z_]+|moto|faker|cfnlint|statsmodels|networkx|numba|fontTools|celery|pip|setuptools|mypyc|tests?)/
$(STAMP): pyproject.toml constraints.txt
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "installing into $(VENV) (about 3 minutes, 2.5 GB)"
	@$(BIN)/pip install --quiet --upgrade "pip>=24" "setuptools==80.9.0" wheel
	@$(BIN)/pip install --quiet --no-compile -c constraints.txt "torch==2.13.0"
	@PYTHONWARNINGS=ignore $(BIN)/pip install --quiet --no-compile -c constraints.txt -e ".[train,pipelines,validation,serve,otel,dev]"
	@$(BIN)/python -m compileall -qq -j 0 -x '$(NOT_COMPILED)' $(VENV)/lib voiceflow serving components pipelines benchmarks || true
	@touch $(STAMP)

setup: $(STAMP) ## Install everything into .venv

espeak: ## Install espeak-ng where it is missing and can be
	@command -v espeak-ng >/dev/null || { [ "$$(id -u)" = 0 ] && apt-get update -qq && apt-get install -y -qq espeak-ng >/dev/null; } \
	 || echo "espeak-ng is missing: without a corpus no voices can be made (apt-get install espeak-ng)"

tools: espeak ## Install what tests talk to, where it is missing and can be: Redis, Prometheus and Alertmanager, Chromium, PostgreSQL
	@missing=""; command -v redis-server >/dev/null || missing="$$missing redis-server"; \
	 command -v prometheus >/dev/null || missing="$$missing prometheus"; \
	 command -v prometheus-alertmanager >/dev/null || missing="$$missing prometheus-alertmanager"; \
	 command -v pg_ctl >/dev/null || ls /usr/lib/postgresql/*/bin/pg_ctl >/dev/null 2>&1 || missing="$$missing postgresql"; \
	 command -v chromium >/dev/null || command -v google-chrome >/dev/null || missing="$$missing chromium"; \
	 [ -z "$$missing" ] || { [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null \
	  && echo "installing$$missing" && apt-get update -qq && apt-get install -y -qq $$missing >/dev/null; } \
	 || echo "missing:$$missing; their tests are skipped (apt-get install$$missing)"

run: intro setup espeak ## The pipeline from data to promotion, then a live stream (set PORT if 8080 is taken)
	@last="$${VOICEFLOW_HOME:-.voiceflow}/last-run.json"; rm -f "$$last"; $(BIN)/voiceflow run --profile $(PROFILE); status=$$?; \
	 if [ $$status -ne 0 ] && [ -f "$$last" ]; then status=0; \
	  echo "the new model was not promoted (reasons above); the champion goes on serving"; fi; \
	 if [ $$status -ne 0 ]; then echo "the pipeline did not come to its end (above); here is the shipped model, live:"; fi; \
	 $(BIN)/voiceflow bench demo --port $(PORT) || exit $$?; \
	 echo; \
	 echo "next:  $(BIN)/voiceflow diarize FILE          who speaks when, in a recording of yours"; \
	 echo "       $(BIN)/voiceflow serve                 a server; then, in another terminal:"; \
	 echo "       $(BIN)/voiceflow stream FILE           send it a recording as if it were spoken now"; \
	 echo "       $(BIN)/voiceflow history               versions of the model"; \
	 exit $$status

intro:
	@$(PYTHON) -c "import socket, sys; taken = [port for port in ($(PORT), $(PORT) + 1) if not socket.socket().connect_ex(('127.0.0.1', port))]; \
	 sys.exit(f'port {taken[0]} is taken by another server: make run PORT=9000 takes other ports' if taken else 0)"
	@echo "make run: about 10 minutes on two cores"
	@echo "  1. installs what is missing          3 minutes, 2.5 GB into $(VENV), once"
	@echo "  2. runs the pipeline                 6 minutes: makes conversations, checks them, trains on from the shipped weights,"
	@echo "                                       judges the new model beside the champion, and promotes it if it is better"
	@echo "  3. streams a conversation, live      1 minute: a server on port $(PORT), turns as they happen"

test: setup tools ## All tests, lint, types and import contracts
	@$(MAKE) --no-print-directory check
	$(BIN)/python -m pytest --numprocesses $(WORKERS) --dist loadfile --no-loadscope-reorder

fmt: setup ## Format the code
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

lint: setup ## Ruff and the import contracts
	$(BIN)/ruff check .
	$(BIN)/lint-imports

types: setup ## mypy --strict on the library
	$(BIN)/mypy

check: lint types ## Lint, types, import contracts

e2e: setup tools ## Only the tests that start real servers
	$(BIN)/python -m pytest -m e2e

bench: setup ## Time the model and a server on this machine
	$(BIN)/voiceflow bench model
	$(BIN)/python -m benchmarks.streams

train: setup ## Train by a profile of params.yaml: make train PROFILE=full
	$(BIN)/voiceflow data ensure
	$(BIN)/voiceflow stage prepare --profile $(PROFILE)
	$(BIN)/voiceflow stage validate --profile $(PROFILE)
	$(BIN)/voiceflow stage train --profile $(PROFILE)
	$(BIN)/voiceflow stage evaluate --profile $(PROFILE)
	$(BIN)/voiceflow stage export --profile $(PROFILE)

acceptance: setup tools ## What must hold, measured: make acceptance PART=model (start, thread, model, streams, servers, rollout, data; SLOW=--slow for what takes longest, ITEM=3 for one number)
	@$(BIN)/pip install --quiet -c constraints.txt -e ".[baselines]"
	$(BIN)/voiceflow data ensure
	$(BIN)/python -m benchmarks.acceptance $(or $(PART),thread) $(SLOW) $(if $(ITEM),--item $(ITEM))

smoke: setup tools ## Every benchmark and acceptance part at tiny size, to see that each runs (10 minutes)
	@$(BIN)/pip install --quiet -c constraints.txt -e ".[baselines]"
	$(BIN)/python -m benchmarks.smoke

frozen: setup ## The held-out conversations that DER is measured on, made again by 0.1.0 and compared with their digests
	$(BIN)/python -m benchmarks.frozen

curve: setup ## DER against training voices and hours: five small networks, about two hours
	$(BIN)/voiceflow data ensure
	$(BIN)/python -m benchmarks.curve

compile: setup ## Compile the pipeline into pipelines/training.yaml
	$(BIN)/python -m pipelines

manifests: setup tools ## Render every overlay, validate it strictly, check our policies and alerts
	$(BIN)/python -m manifests.check
