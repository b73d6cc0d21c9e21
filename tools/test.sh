#!/usr/bin/env bash
# Runs every test under the race detector: first the packages that can share the
# machine, then those with real sandboxes, two at a time, and last the whole
# product, by its API and in a browser: two installations, each of which mostly
# waits. Arguments go to go test.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
export PATH="$PATH:/usr/sbin:/sbin"

mkdir -p .cache
rm -f .cache/tests.txt
CGO_ENABLED=0 go build -o .cache/testsum ./tools/testsum
CGO_ENABLED=0 tools/tool.sh versitygw github.com/versity/versitygw/cmd/versitygw >/dev/null # a real S3 server
root=()
if ((EUID != 0)); then
	root=(sudo -E env "PATH=$PATH")
fi
real='/internal/(agent/(app|engine/gvisor|image|network|shim)|guest/app)$|/test/multihost$'
whole='/test/(e2e|browser)(/|$)'
mapfile -t shared < <(go list ./... | grep -Ev "$real|$whole|/test/bench(/|\$)|/gen/")
# The long ones first, so that none of them goes on alone in the end.
mapfile -t pairs < <(go list ./... | grep -E "$real" | grep -E '/(multihost|gvisor)$'; go list ./... | grep -E "$real" | grep -vE '/(multihost|gvisor)$')
mapfile -t outside < <(go list ./... | grep -E "$whole")

export CGO_ENABLED=1
"${root[@]}" .cache/testsum -name packages -last .cache/tests.txt -- -race -timeout=10m "$@" "${shared[@]}"
"${root[@]}" .cache/testsum -name sandboxes -last .cache/tests.txt -- -race -count=1 -p=2 -timeout=15m "$@" "${pairs[@]}"
"${root[@]}" .cache/testsum -name product -last .cache/tests.txt -- -race -count=1 -p=2 -timeout=15m "$@" "${outside[@]}"
