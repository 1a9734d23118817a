# Two commands matter: `make run` and `make test`. Both set everything up first, in seconds the second time.
# The first of these that works. A distribution's is built with profile-guided optimisation: it decides a fifth faster.
PYTHON ?= /usr/bin/python3.11 python3.11
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
# What Envoy loads besides itself; `matrixinfer up` looks here.
MODULES := $(VENV)/lib/matrixinfer
MODULE := $(MODULES)/libmatrixinfer.so
READY := $(STAMP) $(MODULE)
# An API server for the tests, from Go modules: minutes the first time, and where there is no Go the tests do without.
KUBETEST := .build/kubernetes/kubetest
# For the chart, likewise.
HELM := .build/helm/helm
HELM_VERSION := v3.21.4
MANIFESTS := access controllers gateway leader webhooks

.PHONY: run test check bench fmt generate manifests lock test-engines kubetest helm clean

run: $(READY)
	$(BIN)/matrixinfer up examples/quickstart $(ARGS)

# Not for tests of something else, nor where an API server is given; if it cannot be built, the tests' last lines say so.
WANTS_KUBETEST = $(if $(KUBEBUILDER_ASSETS)$(TEST_KUBECONFIG),,$(if $(ARGS),$(findstring kubernetes,$(ARGS)),all))

# All tests run in lanes, side by side; with ARGS they run one after the other, as a debugger needs it.
LANES ?= 2
# Bytecode is kept: the tests start some hundred processes, and each would compile everything anew.
test: $(READY)
	@$(if $(WANTS_KUBETEST),! command -v go >/dev/null || $(MAKE) --no-print-directory kubetest helm || echo "kubetest or helm was not built: see above" >&2,:)
	PYTHONDONTWRITEBYTECODE= $(BIN)/python -m pytest $(if $(ARGS),$(ARGS),-n $(LANES))

check: $(STAMP)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

bench: $(READY)
	$(BIN)/python -m bench $(ARGS)

fmt: $(STAMP)
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

# crds/ and docs/reference/ are written from matrixinfer/api; a test keeps them equal.
generate: $(STAMP)
	$(BIN)/python -m matrixinfer.api.generate

# charts/manifests/ are what the chart renders by default, for who has no Helm; a test keeps them equal.
manifests: $(HELM)
	@for name in $(MANIFESTS); do \
	  { echo "# Written by make manifests from charts/matrixinfer; change it there."; \
	    $(HELM) template matrixinfer charts/matrixinfer --namespace matrixinfer-system --kube-version 1.36.0 \
	      --set namespace.create=true --set crds.install=false --show-only templates/$$name.yaml | grep -v '^# Source:'; \
	  } > charts/manifests/$$name.yaml || exit 1; done

# Pins with hashes and without download addresses.
lock: $(STAMP)
	$(BIN)/python -m pip install -q uv
	$(BIN)/uv pip compile -q --python-version 3.11 --universal --generate-hashes --no-emit-index-url --no-header --extra local --extra dev pyproject.toml -o requirements-dev.lock
	$(BIN)/uv pip compile -q --python-version 3.11 --universal --generate-hashes --no-emit-index-url --no-header -c requirements-dev.lock pyproject.toml -o requirements.lock
	$(BIN)/uv pip compile -q --python-version 3.11 --generate-hashes --no-emit-index-url --no-header --group compiler -o requirements-compiler.lock

# Installs the real vLLM on CPU beside the project (several GB) and runs the contract tests against it.
test-engines: $(STAMP)
	$(BIN)/python tests/engines/run.py $(ARGS)

kubetest: $(KUBETEST)

$(KUBETEST): $(wildcard tests/kubernetes/kubetest/*)
	@echo "building an API server for the tests: minutes the first time, seconds afterwards"
	tests/kubernetes/kubetest/build.sh $(CURDIR)/$(@D)
	@touch $@

helm: $(HELM)

$(HELM):
	@echo "building Helm $(HELM_VERSION): minutes the first time"
	GOBIN=$(CURDIR)/$(@D) CGO_ENABLED=0 GOFLAGS=-buildvcs=false nice -n 10 go install -p 2 -ldflags "-s -w" helm.sh/helm/v3/cmd/helm@$(HELM_VERSION)
	@touch $@

clean:
	rm -rf $(VENV) .build .mypy_cache .ruff_cache .pytest_cache .import_linter_cache .state

$(STAMP): requirements-dev.lock pyproject.toml
	@test -x $(BIN)/python || for python in $(PYTHON); do command -v $$python >/dev/null || continue; \
	  $$python -c 'import ensurepip' 2>/dev/null || \
	    timeout 120 sh -c 'apt-get update -q && apt-get install -qy python3.11-venv' >/dev/null 2>&1 || continue; \
	  echo $$python -m venv $(VENV); $$python -m venv $(VENV) && break; done
	@test -x $(BIN)/python || { echo "no Python 3.11: apt-get install python3.11 python3.11-venv, or set PYTHON=" >&2; exit 1; }
	$(BIN)/python -m pip install -q --disable-pip-version-check --require-hashes -r requirements-dev.lock
	$(BIN)/python -m pip install -q --disable-pip-version-check --no-deps --no-build-isolation -e .
	@touch $(STAMP)

CFLAGS := -std=c11 -Wall -Wextra -O2 -shared -fPIC
SOURCES := $(wildcard envoy/modules/*.c)
$(MODULE): $(SOURCES) $(wildcard envoy/modules/*.h) | $(STAMP)
	@mkdir -p $(MODULES)
	@if command -v cc >/dev/null; then set -x; cc $(CFLAGS) -o $@ $(SOURCES); else set -x; \
	  $(BIN)/python -m pip install -q --disable-pip-version-check --require-hashes -r requirements-compiler.lock && \
	  $(BIN)/python -m ziglang cc $(CFLAGS) -o $@ $(SOURCES); fi
