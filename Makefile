# Everything happens in .venv. Run `make` to see what there is.

PYTHON ?= python3
# Where Python's packages go. `make test-python` takes one directory for each version of Python.
VENV ?= .venv
UV ?= uv
# Where to take torch from, for a build other than the default one:
#   make install TORCH_INDEX=<index of the build>
TORCH_INDEX ?=
# WITH_TORCH=no leaves torch out, which is large: tests that need it are skipped then.
WITH_TORCH ?= yes
# make lock LOCK_FLAGS=--upgrade takes the newest versions; without it, only what must change does.
LOCK_FLAGS ?=

# Processes that share the quick tests, many of which wait. More are tried out by nobody yet.
WORKERS ?= 2

BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip -qq --disable-pip-version-check
# These empty files say how far it has come.
LOCKED := $(VENV)/.locked
TORCH := $(VENV)/.torch
INSTALLED := $(VENV)/.installed
QUICK_TESTS := $(BIN)/pytest -q -n $(WORKERS) --dist loadfile -m "not slow and not proof"
SHIPPED := mednet-improved mednet-plus mednet-general

# Some environments forbid Python to keep what it compiles. Then every process of a test compiles all that it imports.
unexport PYTHONDONTWRITEBYTECODE

.DELETE_ON_ERROR:
.PHONY: help install run test test-quick test-python proof lint check bench burst chaos fuzz hostile test-producers fits service rotate idle inference study lock clean

help:  ## show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-14s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

install: $(INSTALLED)  ## make .venv with everything in it (the other targets do so themselves)

run: $(INSTALLED)  ## the demo: sort a few images before your eyes
	@$(BIN)/mednet-watcher demo

test: $(INSTALLED)  ## all tests, the quick ones first
	@echo "== tests"
	@$(QUICK_TESTS)
	@echo "== slow tests"
	@$(BIN)/pytest -q -m "slow and not proof"

test-quick: $(INSTALLED)
	@echo "== quick tests, $$($(BIN)/python --version)"
	@$(QUICK_TESTS)

# torch takes several GB, so it is left out. With it: make test-quick PYTHON=python3.13 VENV=.venv-3.13
test-python:  ## the quick tests that need no torch on another Python (make test-python PYTHON=python3.13)
	@version=$$($(PYTHON) -c 'import sys; print("%d.%d" % sys.version_info[:2])') || { \
		echo "$(PYTHON) does not run. Choose another: make test-python PYTHON=python3.12"; exit 1; }; \
	$(MAKE) --no-print-directory test-quick VENV=.venv-$$version WITH_TORCH=no

proof: $(INSTALLED)  ## the tests that take long: on all validation images, on ten thousand files
	@$(BIN)/pytest -q -m proof

lint: $(INSTALLED)  ## format, style, types and architecture
	@echo "== ruff format" && $(BIN)/ruff format --check --quiet . \
		|| { $(BIN)/ruff format --check . ; echo "mend it with: $(BIN)/ruff format ."; exit 1; }
	@echo "== ruff check" && $(BIN)/ruff check --quiet .
	@echo "== mypy" && $(BIN)/mypy --no-error-summary
	@echo "== lint-imports" && $(BIN)/lint-imports --no-logo

check: lint test  ## everything that must hold before a change is handed in

bench: $(INSTALLED)  ## measure this machine
	@$(BIN)/mednet-watcher bench

burst: $(INSTALLED)  ## drop a hundred thousand files at once, and look at each and at the daemon's memory
	@$(BIN)/python -m tests.proofs.burst

chaos: $(INSTALLED)  ## kill the daemon a thousand times while files keep coming, and look for every file
	@$(BIN)/python -m tests.proofs.chaos

fuzz: $(INSTALLED)  ## send a hundred thousand damaged files to the decoders
	@$(BIN)/python -m tests.proofs.fuzz

hostile: $(INSTALLED)  ## drop ten thousand hostile files among good ones, and look for each
	@$(BIN)/python -m tests.proofs.hostile

test-producers: $(INSTALLED)  ## cp, rsync, scp, Samba, FTP ... into the inbox, a hundred files each (installs what is missing, as root)
	@$(BIN)/python -m tests.proofs.producers --install --write docs/producers.md

service: $(INSTALLED)  ## the service under a real systemd in a container: start, work, trouble, watchdog, stop (needs root)
	@$(BIN)/pytest -q -s tests/service/test_systemd_unit.py

rotate: $(INSTALLED)  ## write a million log lines while logrotate turns the file over, and look for each
	@$(BIN)/python -m tests.proofs.rotation

idle: $(INSTALLED)  ## measure what the daemon costs when there is nothing to do, and how soon it is ready
	@$(BIN)/python -m tests.proofs.idle

inference: $(INSTALLED)  ## measure the network alone, against PyTorch and ONNX Runtime
	@$(BIN)/python -m tests.proofs.inference $(if $(DATA),--data $(DATA) --split $(SPLIT))

study: $(INSTALLED)  ## the whole study of recipes, hours long, goes on where it ended (make study DATA=DIR SPLIT=CSV RUNS=DIR, see docs/study)
	@test -n "$(DATA)" -a -n "$(SPLIT)" -a -n "$(RUNS)" || { echo "make study needs MedNIST, its split and room: DATA=DIR SPLIT=CSV RUNS=DIR"; exit 1; }
	@trap 'kill $$running 2>/dev/null' EXIT; trap 'exit 130' INT TERM; \
	for plan in docs/study docs/study/full; do \
		does="$(BIN)/mednet-watcher ablate --study $$plan/study.yaml --data $(DATA) --split $(SPLIT) --out $(RUNS)/$$(basename $$plan)"; \
		for core in $$(seq $$(nproc)); do $$does --threads 1 & running="$$running $$!"; done; \
		for each in $$running; do wait $$each || exit 1; done; running=; \
		$$does --collect || exit 1; \
	done
	@$(BIN)/mednet-watcher audit-data --data $(DATA) --split $(SPLIT) --weights $(SHIPPED) > /dev/null
	@$(BIN)/mednet-watcher report
	@$(BIN)/mednet-watcher report --study docs/study/full/study.yaml --data $(DATA) --split $(SPLIT) --weights $(SHIPPED)

fits: $(INSTALLED)  ## measure ways to make real images fit 64 x 64 (make fits POOL=DIR, see docs/fits.md)
	@test -n "$(POOL)" || { echo "make fits needs a directory of labelled images: make fits POOL=DIR (see docs/fits.md)"; exit 1; }
	@$(BIN)/python -m tests.proofs.resize_methods $(POOL)

lock:  ## write .requirements/locked.txt anew from pyproject.toml (needs uv)
	@command -v $(UV) >/dev/null || { echo "make lock needs uv (pip install uv), or say where it is: UV=..."; exit 1; }
	@echo "== locking"
	@$(UV) pip compile --quiet --universal --python-version 3.11 --generate-hashes \
		--extra dicom --extra onnx --extra web --extra train --extra dev --excludes .requirements/unlocked.txt \
		--no-emit-index-url --no-emit-find-links --custom-compile-command "make lock" $(LOCK_FLAGS) \
		--output-file .requirements/locked.txt pyproject.toml .requirements/locked.in

clean:  ## remove .venv and those of other Pythons, caches and what the demo made (trained networks in runs/ stay)
	@rm -rf .venv .venv-* .demo dist .hypothesis .import_linter_cache .mypy_cache .pytest_cache .ruff_cache .coverage htmlcov
	@find watcher tests -name __pycache__ -type d -prune -exec rm -rf {} +

$(LOCKED): .requirements/locked.txt
	@command -v $(PYTHON) >/dev/null || { echo "$(PYTHON) is not there. Choose another: make PYTHON=python3.12"; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
		echo "mednet-watcher needs Python 3.11 or newer, $(PYTHON) is $$($(PYTHON) --version 2>&1)."; \
		echo "Choose another: make PYTHON=python3.12"; exit 1; }
	@echo "== $(VENV): $$($(PYTHON) --version)"
	@$(PYTHON) -m venv $(VENV)
	@echo "== $(VENV): locked requirements"
	@$(PIP) install --require-hashes --no-deps -r .requirements/locked.txt
	@touch $@

$(TORCH): $(LOCKED) .requirements/torch.txt
	@echo "== $(VENV): torch (large)"
	@$(PIP) install torch -c .requirements/torch.txt $(if $(TORCH_INDEX),--index-url $(TORCH_INDEX))
	@touch $@

$(INSTALLED): $(if $(filter no,$(WITH_TORCH)),$(LOCKED),$(TORCH)) pyproject.toml
	@echo "== $(VENV): mednet-watcher itself"
	@$(PIP) install --no-deps --no-build-isolation --editable .
	@touch $@
