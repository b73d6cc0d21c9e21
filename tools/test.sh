#!/usr/bin/env bash
# Runs every test under the race detector: first the packages that can share the
# machine, then those with real sandboxes, two at a time, and last the whole
# product: three installations beside each other, each of which mostly waits, by
# the API in two parts, one of them with E2B's client, and in a browser. Arguments go to go test.
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
real='/internal/(agent/(app|engine/(gvisor|microvm)|image|network|shim)|guest/app)$|/test/multihost$'
whole='/test/(e2e|e2b|browser)(/|$)'
mapfile -t shared < <(go list ./... | grep -Ev "$real|$whole|/test/bench(/|\$)|/gen/")
# The long ones first, so that none of them goes on alone in the end.
mapfile -t pairs < <(go list ./... | grep -E "$real" | grep -E '/(multihost|gvisor|microvm)$'; go list ./... | grep -E "$real" | grep -vE '/(multihost|gvisor|microvm)$')
# What sandboxes live through, by the rows and traps in the names of the tests.
lives='^Test(S4|S5|S6|S7|ST|TL|LL|RS|RC)'
export CGO_ENABLED=1
"${root[@]}" .cache/testsum -name packages -last .cache/tests.txt -- -race -timeout=10m "$@" "${shared[@]}"
"${root[@]}" .cache/testsum -name sandboxes -last .cache/tests.txt -- -race -count=1 -p=2 -timeout=15m "$@" "${pairs[@]}"
if (($#)); then
	exec "${root[@]}" .cache/testsum -name product -last .cache/tests.txt -- -race -count=1 -p=2 -timeout=15m "$@" ./test/e2e/... ./test/e2b/... ./test/browser/...
fi
part() { # part <name> <arguments of go test…>: a part of the product's tests, which prints when it is through
	local name=$1 code=0
	shift
	"${root[@]}" .cache/testsum -name "$name" -last .cache/tests.txt -- -race -count=1 -timeout=15m "$@" >".cache/$name.out" 2>&1 || code=$?
	cat ".cache/$name.out"
	return "$code"
}
parts=()
part lives -run "$lives" ./test/e2e/... &
parts+=($!)
part product -p=1 -skip "$lives" ./test/e2e/... ./test/e2b/... &
parts+=($!)
part browser ./test/browser/... &
parts+=($!)
failed=0
for pid in "${parts[@]}"; do
	wait "$pid" || failed=1
done
exit "$failed"
