#!/usr/bin/env bash
# Runs every test: first all packages under the race detector, then the tests
# of whole sandboxes against the built binaries. Arguments go to go test.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
export PATH="$PATH:/usr/sbin:/sbin"

mkdir -p .cache
rm -f .cache/tests.txt
CGO_ENABLED=0 go build -o .cache/testsum ./tools/testsum
root=()
if ((EUID != 0)); then
	root=(sudo -E env "PATH=$PATH")
fi
mapfile -t inside < <(go list ./... | grep -Ev '/test/(e2e|chaos|bench|multihost|browser)(/|$)|/gen/')
mapfile -t outside < <(go list ./test/... | grep -E '/test/(e2e|multihost|browser|chaos)(/|$)')

CGO_ENABLED=1 "${root[@]}" .cache/testsum -name packages -last .cache/tests.txt -- -race -timeout=10m "$@" "${inside[@]}"
if ((${#outside[@]})); then
	"${root[@]}" .cache/testsum -name sandboxes -last .cache/tests.txt -- -count=1 -p=1 -timeout=15m "$@" "${outside[@]}"
fi
