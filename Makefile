# Skerry from a checkout. Only Go and Node have to be there; `make up` installs
# what else is missing (Debian packages, see tools/deps.sh).
SHELL := bash
.DEFAULT_GOAL := help

SUDO := $(if $(filter 0,$(shell id -u)),,sudo -E)
FLAGS ?=
ifeq ($(DETACH),1)
UP_FLAGS := --detach
endif

help: ## This list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-10s %s\n", $$1, $$2 }' Makefile

up: build ## Start everything on this machine (DETACH=1: in the background)
	@$(SUDO) bin/skerry up $(UP_FLAGS) $(FLAGS)

down: build ## Stop it; FLAGS=--purge removes everything it ever made
	@$(SUDO) bin/skerry down $(FLAGS)

build: deps ## bin/skerry, bin/skerry-guest, bin/runsc
	@tools/build.sh

deb: build ## The Debian package, in dist/
	@tools/deb.sh

deps:
	@tools/deps.sh

test: build ## All tests, as root, with what ran and for how long
	@tools/deps.sh test
	@tools/test.sh

lint: ## Format, vet, lint, generated code
	@tools/lint.sh

generate: ## Run the generators whose inputs changed
	@tools/generate.sh

bench: build ## Measure against the bare engine, and the API
	@tools/deps.sh test
	@$(SUDO) env "PATH=$$PATH" go test -count=1 -timeout=30m -run='^$$' -bench=. $(FLAGS) ./test/bench/... ./internal/control/audit/... ./internal/control/app

chaos: build ## The tests of whole sandboxes, and of races in the database, at their full counts
	@tools/deps.sh test
	@$(SUDO) env "PATH=$$PATH" SKERRY_TEST_LONG=1 go test -count=1 -timeout=120m -v $(FLAGS) ./test/e2e/... ./test/browser/... ./test/multihost/... ./internal/control/...

.PHONY: help up down build deb deps test lint generate bench chaos
