# Needs Python 3.11 or newer and make.
#   make          creates .venv: 7.2 GB with CUDA libraries; without them: make setup CPU=1 TORCH_INDEX=URL
#   make demo     trains, saves and serves a model on built-in images
#   make test     lint, types, tests       make serve   serves the models in ./storage
#   make test-slow  longer tests           make test-web  the page in Chromium
#   make test-abuse  hostile requests      make test-cluster  ray up on hosts in network namespaces
#   make test-protocols  the server with clients of Triton and TorchServe
#   make docs     the documentation as a site     make docs-test  runs its examples
#   make release-check  all that a release needs
#   make test-chaos  a training run killed thirty times   make test-gpu  on an NVIDIA GPU
#   make coverage  the lines that the tests run   make mutants   mutation tests
#   make wheel-test  an installed wheel        make test-newest  the newest ray and torch
#   make audit    known vulnerabilities of the locked packages
PYTHON ?= python3
BIN := .venv/bin
UV := $(BIN)/uv
INSTALL := DEBIAN_FRONTEND=noninteractive apt-get install -qq --no-install-recommends

.DEFAULT_GOAL := setup
.PHONY: docs docs-test release-check setup lock format lint test test-fast test-slow test-chaos coverage mutants test-web test-abuse test-protocols test-cluster test-newest test-gpu wheel-test audit demo serve clean

setup: .venv/.installed
	@echo "ready: . .venv/bin/activate, or see 'make demo' and README.md"

$(UV):
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "Python 3.11 or newer is needed; pass PYTHON=…" >&2; exit 2; }
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install -q --disable-pip-version-check "$$(grep -m1 -o '^uv==[0-9.]*' requirements.lock)"

ifeq ($(CPU),1)
ifeq ($(TORCH_INDEX),)
$(error CPU=1 needs TORCH_INDEX=URL, an index with builds of torch without CUDA, such as a mirror of download.pytorch.org/whl/cpu: \
	the usual registry has none for Linux on x86-64)
endif
# All packages except torch are installed from the lock with hashes. The lock has no hashes for these builds of torch, so you must trust their index.
INSTALL_LOCKED = awk '/^[^ ]/ { drop = /^(torch|torchvision|triton|nvidia-[a-z0-9-]+|cuda-[a-z]+)==/ } !drop' requirements.lock > .venv/without-cuda.lock && \
	$(UV) pip install -q --python $(BIN)/python --no-deps --index-url $(TORCH_INDEX) $$(grep -oE '^(torch|torchvision)==[0-9.]+' requirements.lock) && \
	$(UV) pip install -q --compile-bytecode --python $(BIN)/python --no-deps --require-hashes -r .venv/without-cuda.lock
SIZE := at most 3.4 GB, torch without CUDA from $(TORCH_INDEX)
else
INSTALL_LOCKED = $(UV) pip install -q --compile-bytecode --python $(BIN)/python --require-hashes -r requirements.lock
SIZE := 7.2 GB on Linux, 4 GB of it CUDA libraries; without a GPU: make setup CPU=1 TORCH_INDEX=URL
endif

# Compile once here. Otherwise each process that Ray starts compiles again, every time if the folder of the packages is read-only.
.venv/.installed: requirements.lock pyproject.toml | $(UV)
	@echo "installing into .venv: $(SIZE)"
	$(INSTALL_LOCKED)
	$(UV) pip install -q --python $(BIN)/python --no-deps --no-build-isolation -e .
	@touch $@

# The lock has names, versions and hashes only, so users can choose the registry. The Dockerfile installs the production lock: training,
# tuning and serving, without development tools.
COMPILE = $(UV) pip compile -q --universal --python-version 3.11 --generate-hashes --no-emit-index-url --no-header --no-annotate $(LOCKFLAGS)
PRODUCTION := aws export labels openvino traces tracking tune
lock: | $(UV)
	$(COMPILE) $(addprefix --extra ,$(PRODUCTION) dev docs heic quantize web) pyproject.toml -o requirements.lock
	$(COMPILE) $(addprefix --extra ,$(PRODUCTION)) --constraint requirements.lock pyproject.toml -o requirements.production.lock

format: setup
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

lint: setup
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/codespell

test: lint
	$(BIN)/python -m pytest

# Tests that do not start Ray
test-fast: setup
	$(BIN)/python -m pytest -m "not (ray or web or abuse or slow or cluster or chaos or wheel or protocols or release or gpu)"

# Slow tests, which would make `make test` longer than ten minutes
test-slow: setup
	$(BIN)/python -m pytest -m slow

# CUDA graphs, precisions, copies and waits on an NVIDIA GPU; skipped without a GPU
test-gpu: setup
	$(BIN)/python -m pytest -m gpu

# One training run, killed thirty times; half an hour on two cores. CHAOS_SEED=1 draws other faults.
test-chaos: setup
	$(BIN)/python -m pytest -s -m chaos tests/training

# Code coverage of `make test`, without code that runs in other processes; a quarter of an hour
coverage: setup
	$(UV) pip install -q --python $(BIN)/python --no-build-isolation -e '.[quality]'
	$(BIN)/python -m pytest -q --cov --cov-report=term:skip-covered

# Mutation tests of the modules that pyproject.toml names; an hour. `.venv/bin/mutmut results` lists the changes that no test detects, and
# `.venv/bin/mutmut show NAME` shows one. benchmarks/results/mutants.md describes the known ones.
mutants: setup
	$(UV) pip install -q --python $(BIN)/python --no-build-isolation -e '.[quality]'
	$(BIN)/mutmut run

# The server's page in Chromium; a minute
test-web: setup
	@test -x /usr/bin/chromium || test "$$(id -u)" -ne 0 || ! command -v apt-get >/dev/null || \
		{ apt-get update -qq && $(INSTALL) chromium fonts-dejavu-core fonts-noto-cjk >/dev/null; } || true
	$(BIN)/python -m pytest -m web tests/web

# 20,000 hostile uploads to a real server, then schemathesis; about six minutes
test-abuse: setup
	$(BIN)/python -m pytest -s -m abuse tests/abuse

# `docs` builds the documentation as a site in site/, with the Python API, and checks all links. `docs-test` runs its examples; some minutes
docs: setup
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build -q

docs-test: setup
	cd docs && ../$(BIN)/python -m pytest -q -c pytest.ini --rootdir .

# What a release needs: tests, site, wheel and sdist with their contents checked, a bill of materials (CycloneDX) of the production lock,
# and the wheel in an empty environment
release-check: setup
	@git diff --quiet HEAD || { echo "there are uncommitted changes; commit them first" >&2; exit 1; }
	rm -rf dist
	$(MAKE) test docs
	$(UV) build -q --no-build-isolation --python $(BIN)/python
	$(UV) tool run -q twine check --strict dist/*
	$(UV) tool run -q --from cyclonedx-bom cyclonedx-py requirements requirements.production.lock --of JSON -o dist/sbom.cdx.json
	$(BIN)/python -m pytest -q -m release tests/test_release.py
	$(MAKE) wheel-test
	@ls -l dist

# NVIDIA's tritonclient over HTTP and gRPC, and curl as TorchServe's documentation shows it, against `cifar-ray serve`; a minute or two.
# tritonclient is installed into an environment of its own; without a registry, the tests are skipped.
test-protocols: setup
	$(BIN)/python -m pytest -s -m protocols tests/protocols

# cluster.yaml on five hosts in network namespaces, and the loss of hosts; as root, half an hour. An SSH server or Redis that is installed
# only for these tests is not started as a service.
test-cluster: setup
	@test "$$(id -u)" -ne 0 || ! command -v apt-get >/dev/null || test -x /usr/sbin/sshd || \
		{ apt-get update -qq && $(INSTALL) openssh-server >/dev/null && systemctl disable --quiet --now ssh 2>/dev/null; } || true
	@test "$$(id -u)" -ne 0 || ! command -v apt-get >/dev/null || { command -v ip && command -v rsync; } >/dev/null || \
		{ apt-get update -qq && $(INSTALL) iproute2 rsync >/dev/null; } || true
	@test "$$(id -u)" -ne 0 || ! command -v apt-get >/dev/null || command -v redis-server >/dev/null || \
		{ apt-get update -qq && $(INSTALL) redis-server >/dev/null && systemctl disable --quiet --now redis-server 2>/dev/null; } || true
	$(BIN)/python -m pytest -s -m cluster tests/cluster

# Builds a wheel, installs it into an empty environment outside the checkout, and runs `cifar-ray demo` and `cifar-ray serve`; some minutes
wheel-test: setup
	$(BIN)/python -m pytest -s -m wheel tests/test_wheel.py

# Tests with the newest releases of all packages, including ray and torch above their upper bounds, in an environment of their own.
# First the private parts that cluster/private.py uses, then all tests of `make test-fast`.
test-newest: setup
	$(UV) venv -q --allow-existing --python $(BIN)/python .venv-newest
	printf 'ray[train,serve,tune]\ntorch\ntorchvision\n' > .venv-newest/overrides.txt
	$(UV) pip install -q --upgrade --python .venv-newest/bin/python --overrides .venv-newest/overrides.txt \
		-e '.[aws,dev,export,openvino,quantize,traces,tracking,tune,web]'
	@.venv-newest/bin/python -c 'import ray, torch; print("testing ray", ray.__version__, "and torch", torch.__version__)'
	.venv-newest/bin/python -m pytest -q tests/test_private.py
	.venv-newest/bin/python -m pytest -q -m "not (ray or web or abuse or slow or cluster or chaos or wheel or protocols or release or gpu)"

# Known vulnerabilities of the locked versions. It asks a database on the internet, so it is not part of the tests. --strict fails without a connection.
audit: | $(UV)
	@$(UV) tool run pip-audit --strict --disable-pip --require-hashes -r requirements.lock \
		|| { echo "a locked version has a known weakness, or the database could not be asked: see above" >&2; exit 1; }

demo: setup
	$(BIN)/cifar-ray demo

serve: setup
	exec $(BIN)/cifar-ray serve

clean:
	rm -rf .venv .venv-newest .venv-tritonclient .mypy_cache .ruff_cache
