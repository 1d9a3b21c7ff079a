# `make train` and `make test` do all the set-up on a fresh machine.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# uv, pip-audit and hadolint, in an environment of their own.
TOOLS := build/tools
# Python compiles what it imports, and keeps it; compiling all of every package takes a third of the time of the
# installation. Where nothing is kept, as in many containers, each process would compile torch anew: 3 s of one core.
unexport PYTHONDONTWRITEBYTECODE
PIP_INSTALL := -m pip install --quiet --disable-pip-version-check --no-compile
PIP := $(BIN)/python $(PIP_INSTALL) --constraint constraints.txt
# Installs a lock and nothing else: each file must have a hash that the lock names, and only wheels are taken, because
# building another package would run code that has no hash.
FROM_LOCK := $(PIP_INSTALL) --require-hashes --no-deps --only-binary :all: --requirement

.PHONY: train test table test-faults simulate test-torch test-trackers test-timm test-oldest test-newest fuzz check lint-docker \
	test-docker-steps audit sbom licences docs picture web-runtime package bench records lock upgrade clean

train: $(VENV)/.installed  ## train a real model on the embedded data set
	$(BIN)/thumbnet train digits

# How many tests run at a time, each with one thread; JOBS=0 is one, with all threads. `make test-faults JOBS=0` also
# shows what the tests measure.
JOBS ?= 2
PYTEST = $(BIN)/python -m pytest --numprocesses $(JOBS) --dist worksteal
# COVERAGE=1 also measures which branches the tests take, and prints what they miss; it takes a third longer.
COVER = $(if $(COVERAGE),--cov=thumbnet --cov-branch --cov-report=term:skip-covered)

# FAULTS=small also runs tests/faults, as CI does. SLOW=1 also tries out the whole benchmark for a GPU, on the CPU: some
# minutes.
test: $(VENV)/.installed-dev  ## run the tests
	@$(MAKE) --no-print-directory web-runtime || echo "The tests that need ONNX Runtime Web are skipped." >&2
	$(if $(SLOW),THUMBNET_SLOW=1) $(if $(FAULTS),THUMBNET_FAULTS=$(FAULTS)) $(PYTEST) $(COVER) $(if $(FAULTS),,--ignore=tests/faults)

# Processes that are killed, disks that are full, links that are cut, broken and hostile files: 25 minutes.
# FAULTS=small is what CI runs: fewer kills, fewer steps, smaller folders.
test-faults: $(VENV)/.installed-dev  ## inject faults, and see that nothing is lost
	THUMBNET_FAULTS=$(or $(FAULTS),full) $(PYTEST) -s tests/faults

# A seed decides everything: the data, the recipe, and what fails when. SEED=17 replays one seed and prints what happens;
# FIRST is the first one. About a third of a second of one core per seed.
SEEDS ?= 1000
FIRST ?= 0
simulate: $(VENV)/.installed-dev  ## train with faults drawn from a seed, resume, and compare to the bit: SEEDS=1000, or SEED=17
	PYTHONPATH=tests $(BIN)/python tests/faults/simulate.py $(if $(SEED),--seed $(SEED),--seeds $(SEEDS) --first $(FIRST))

# Long: most of it is the simulated GPU. `make test` tries a selection with every pair of values.
table: $(VENV)/.installed-dev  ## try out every recipe x network x device x precision x engine; write docs/supported.md
	THUMBNET_SLOW=1 $(PYTEST) --deselect tests/test_table.py::test_the_page_of_what_works_is_up_to_date tests/test_table.py
	PYTHONPATH=tests $(BIN)/python tests/table.py

# timm and torchvision are installed alone, without what they depend on: all of that is in .venv, and PyPI's torchvision
# would bring the torch for CUDA with its gigabytes. The new environment sees the packages of .venv through a .pth file.
TIMM_VENV := .venv-timm
TIMM_TESTS := tests/models/test_from_timm.py tests/training/test_pretrained.py
test-timm: $(VENV)/.installed-dev  ## run the tests of timm's networks, in .venv-timm
	$(call environment,$(TIMM_VENV),$(BIN)/python)
	$(TIMM_VENV)/bin/python -m pip install --quiet --disable-pip-version-check --no-deps \
		--constraint constraints.txt timm torchvision
	$(BIN)/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))' > \
		"$$($(TIMM_VENV)/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/thumbnet-venv.pth"
	PYTHONPATH=src $(TIMM_VENV)/bin/python -m pytest --numprocesses $(JOBS) --dist worksteal $(TIMM_TESTS)

# Another torch than the pinned one, in an environment of its own: make test-torch TORCH=2.11.0
# PyPI's torch for Linux brings several GB of CUDA. TORCH_INDEX=https://download.pytorch.org/whl/cpu takes the
# build for the CPU. TESTS names the tests to run, TORCH_VENV another place for the environment.
TORCH_VENV ?= build/torch-$(TORCH)
TORCH_PIP = $(TORCH_VENV)/bin/python -m pip install --quiet --disable-pip-version-check
TESTS ?= --ignore=tests/faults tests
test-torch:  ## run the tests with another version of torch, in build/torch-VERSION
	@test -n "$(TORCH)" || { echo "which version? for example: make test-torch TORCH=2.11.0" >&2; exit 2; }
	$(call environment,$(TORCH_VENV),$(PYTHON))
	grep -v -e '^torch==' -e '^setuptools==' constraints.txt > $(TORCH_VENV)/constraints.txt
	$(TORCH_PIP) --no-deps $(if $(TORCH_INDEX),--index-url $(TORCH_INDEX)) "torch==$(TORCH)"
	$(TORCH_PIP) --constraint $(TORCH_VENV)/constraints.txt "torch==$(TORCH)" --editable '.[dev]'
	$(TORCH_VENV)/bin/python -c 'import torch; print("torch", torch.__version__)'
	$(TORCH_VENV)/bin/python -m pytest --numprocesses $(JOBS) --dist worksteal $(TESTS)

# MLflow and W&B, in an environment of their own that finds everything else in $(VENV): MLflow wants an older
# importlib_metadata than constraints.txt. The last line of the recipe is all that connects the two.
TRACKERS_VENV ?= build/trackers
test-trackers: $(VENV)/.installed-dev  ## run the trackers' tests with MLflow and W&B themselves, in build/trackers
	$(call environment,$(TRACKERS_VENV),$(BIN)/python)
	test -e $(TRACKERS_VENV)/.installed || \
		$(TRACKERS_VENV)/bin/python -m pip install --quiet --disable-pip-version-check 'mlflow>=3.9' 'wandb>=0.31'
	$(BIN)/python -c 'import sysconfig; print("import site; site.addsitedir(%r)" % sysconfig.get_path("purelib"))' \
		> "$$($(TRACKERS_VENV)/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/dev.pth"
	touch $(TRACKERS_VENV)/.installed
	$(TRACKERS_VENV)/bin/python -m pytest tests/training/test_tracking.py tests/training/test_*_tracker.py

# The oldest versions that pyproject.toml allows, or the newest, in an environment of its own: make test-oldest
# torch stays as it is pinned: with TORCH=2.11.0, an index for the CPU should be at hand (see test-torch).
# TESTS="tests/sources tests/data" runs only these tests. EXTRAS=train,formats installs only these extras, to try a
# version that is older than what another extra lets in.
EXTRAS ?= all
VERSIONS_VENV = build/$*$(if $(filter-out all,$(EXTRAS)),-$(EXTRAS))
test-oldest test-newest: test-%: $(TOOLS)/.installed  ## run the tests with the oldest or newest versions allowed
	$(call environment,$(VERSIONS_VENV),$(PYTHON))
	$(TOOLS)/bin/python tools/lock.py --resolve $* --extras $(EXTRAS) --out $(VERSIONS_VENV)/pins.txt \
		$(if $(TORCH),--torch $(TORCH))
	$(VERSIONS_VENV)/bin/python $(PIP_INSTALL) --no-deps "$$(grep '^torch==' $(VERSIONS_VENV)/pins.txt)"
	$(TOOLS)/bin/uv pip install --quiet --python $(VERSIONS_VENV)/bin/python --no-deps --requirement $(VERSIONS_VENV)/pins.txt
	$(VERSIONS_VENV)/bin/python $(PIP_INSTALL) --no-deps --no-build-isolation --editable .
	$(VERSIONS_VENV)/bin/python -m pytest --numprocesses $(JOBS) --dist worksteal $(TESTS)

FUZZ_SECONDS ?= 120
fuzz: $(VENV)/.installed-dev  ## fuzz everything that reads bytes from others; findings are files crash-*
	$(PIP) atheris
	mkdir -p build/fuzz
	cd build/fuzz && for target in $$(../../$(BIN)/python ../../tests/faults/fuzz.py); do \
		../../$(BIN)/python ../../tests/faults/fuzz.py $$target $(FUZZ_SECONDS) || exit; \
	done

check: $(VENV)/.installed-dev  ## linter, formatters and type checker
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/clang-format --dry-run -Werror src/thumbnet/kernels/*.[ch] tests/kernels/*.[ch] tests/faults/*.c
	$(BIN)/mypy

lint-docker: $(TOOLS)/.installed  ## linter for the Dockerfile
	$(TOOLS)/bin/hadolint Dockerfile

# As root, on Linux: it mounts a read-only file system in a namespace of its own.
test-docker-steps: $(VENV)/.installed-dev  ## run the Dockerfile's steps without an engine, and the service as it starts it
	$(BIN)/python tools/docker_steps.py

# Asks PyPI's JSON API; AUDIT_SERVICE=osv asks osv.dev. --strict: a package that nobody knows is an error, not a pass.
AUDIT_SERVICE ?= pypi
audit: $(TOOLS)/.installed  ## look for known holes in every version of the locks
	for lock in serve train cuda test tools; do \
		$(TOOLS)/bin/pip-audit --strict --disable-pip --require-hashes --vulnerability-service $(AUDIT_SERVICE) \
			--progress-spinner off --requirement locks/$$lock.txt || exit; \
	done

sbom: $(VENV)/.installed-dev $(TOOLS)/.installed  ## write and check the bill of materials of a release: build/sbom
	$(BIN)/python tools/sbom.py build/sbom/thumbnet.cdx.json
	$(TOOLS)/bin/python tools/sbom.py --check build/sbom/thumbnet.cdx.json

licences: $(VENV)/.installed-dev  ## write docs/licences.md, and fail if a licence is not allowed
	$(BIN)/python tools/licences.py

docs: $(VENV)/.installed-dev  ## build the documentation site, strictly, in build/site
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet --strict

# The picture shows times, so run this while the computer has nothing else to do.
picture: $(VENV)/.installed-dev  ## record a training for the picture of the terminal in README.md
	$(BIN)/python docs/terminal.py

# Two files of the npm package onnxruntime-web, for `thumbnet export --format web`: 33 MB to download. The
# wheel contains them. A checkout without them downloads them at the first such export.
WEB := src/thumbnet/publish/web/runtime
web-runtime: $(WEB)/.fetched  ## download ONNX Runtime Web, and verify it

$(WEB)/.fetched: src/thumbnet/publish/web_runtime.py | $(VENV)/.installed-dev
	$(BIN)/python -m thumbnet.publish.web_runtime
	touch $@

# PYTHONS: in which of them to install the wheel and train, as make package PYTHONS="python3.11 python3.13".
PYTHONS ?= $(PYTHON)
package: $(VENV)/.installed-dev web-runtime  ## build what is published, and train with it in clean environments
	.ci/package $(PYTHONS)

# Two hours and a half on two cores. Each line alone is a program: python benchmarks/NAME.py --help
BENCH := build/benchmarks
bench: $(VENV)/.installed-dev  ## measure what docs/results.md and docs/notebook quote; JSON in build/benchmarks
	mkdir -p $(BENCH)
	$(BIN)/python benchmarks/starting.py --json $(BENCH)/starting.json
	$(BIN)/python benchmarks/operations.py --network fastnet --json $(BENCH)/operations-fastnet.json
	$(BIN)/python benchmarks/operations.py --network resnet18 --batch 256 --json $(BENCH)/operations-resnet18.json
	$(BIN)/python benchmarks/training_speed.py --json $(BENCH)/training_speed.json
	$(BIN)/python benchmarks/predicting.py --json $(BENCH)/predicting.json
	$(BIN)/python benchmarks/loading.py --json $(BENCH)/loading.json
	$(BIN)/python benchmarks/accuracy.py --epochs 15 --seeds 5 --cold --json $(BENCH)/accuracy.json
	$(BIN)/python benchmarks/accuracy.py --epochs 1 2 4 8 12 20 32 --seeds 1 --cold --earlier $(BENCH)/accuracy.json \
		--json $(BENCH)/pareto.json --plot $(BENCH)/pareto.png
	$(BIN)/python benchmarks/tutorial_faults.py --json $(BENCH)/faults.json --plot $(BENCH)/faults.png
	$(BIN)/python benchmarks/howtos.py --json $(BENCH)/howtos.json
	$(BIN)/python benchmarks/unlike.py --pictures 50000 --epochs 15 --json $(BENCH)/unlike.json

# REFERENCE=PATH/airbench94_muon.py also runs the reference in turns, 23 minutes each time. Goes on where it stopped.
records: $(VENV)/.installed-dev  ## measure the headline numbers from this commit, into docs/records: an hour, or two and a half with REFERENCE
	$(BIN)/python benchmarks/records.py $(if $(REFERENCE),--reference $(REFERENCE)) $(if $(DATA),--data $(DATA))

# TORCH_INDEX=https://download.pytorch.org/whl/cpu also accepts that index's builds of torch, for every Python.
lock: $(TOOLS)/.installed  ## write locks/ after a change of constraints.txt or of the dependencies: 10 seconds
	$(TOOLS)/bin/python tools/lock.py $(if $(TORCH_INDEX),--torch-index $(TORCH_INDEX))

# torch stays at its version, because another one changes results: make upgrade TORCH=2.14.1
upgrade: $(TOOLS)/.installed  ## renew constraints.txt and the locks
	$(TOOLS)/bin/python tools/lock.py --upgrade $(if $(TORCH),--torch $(TORCH)) $(if $(TORCH_INDEX),--torch-index $(TORCH_INDEX))

clean:
	rm -rf $(VENV) $(TIMM_VENV) build dist .mypy_cache .ruff_cache .pytest_cache

# Makes the environment $(1) with the Python $(2). An existing one stays if its Python is new enough and has pip, which
# is missing if its making was interrupted. --clear empties an environment, but no folder that is something else.
CHECK_VERSION = import sys; sys.exit(sys.version_info < (3, 11) and "thumbnet needs Python 3.11 or newer, and $(PYTHON) is \
	%d.%d: add PYTHON=python3.12, for example, to the command" % sys.version_info[:2])
define environment
	@$(1)/bin/python -c '$(CHECK_VERSION)' 2> /dev/null && $(1)/bin/python -m pip --version > /dev/null 2>&1 || { \
		$(2) -c '$(CHECK_VERSION)' && $(2) -m venv $(if $(wildcard $(1)/pyvenv.cfg),--clear) $(1); }
endef

# Installs locks/$(1).txt and thumbnet itself. torch for the CPU comes first and by itself: pip prefers a file whose
# hash the index states, which a folder of wheels (PIP_FIND_LINKS) cannot. Where there is no such build, the lock
# brings the index's own; the one for CUDA needs more packages.
define install-lock
	$(call environment,$(VENV),$(PYTHON))
	why=$$($(BIN)/python $(FROM_LOCK) locks/torch-cpu.txt 2>&1) || \
		echo "no CPU build of torch here; taking the index's. pip said: $$(echo "$$why" | grep '^ERROR' | tail -n 1)" >&2
	$(BIN)/python $(FROM_LOCK) locks/$(1).txt
	! $(BIN)/python -m pip show torch | grep -q '^Requires:.*cuda' || $(BIN)/python $(FROM_LOCK) locks/cuda.txt
	$(PIP) --no-deps --no-build-isolation --editable .
endef

# The way without hashes: torch first and by itself, because pip takes the build for the CPU, where there is one, only
# before another package asks for torch.
define install-constrained
	$(call environment,$(VENV),$(PYTHON))
	$(PIP) "$$(grep '^torch==' constraints.txt)"
	$(PIP) --editable '.[$(1)]'
endef

# LOCKED=0 installs without hashes, for a platform or a Python that a package of the locks has no wheel for.
LOCKED ?= 1
installed = $(if $(filter 0,$(LOCKED)),$(call install-constrained,$(2)),$(call install-lock,$(1)))

$(VENV)/.installed: locks/train.txt pyproject.toml
	$(call installed,train,all)
	touch $@

$(VENV)/.installed-dev: locks/test.txt pyproject.toml
	$(call installed,test,dev)
	touch $@ $(VENV)/.installed

$(TOOLS)/.installed: locks/tools.txt
	$(call environment,$(TOOLS),$(PYTHON))
	$(TOOLS)/bin/python $(FROM_LOCK) locks/tools.txt
	touch $@
