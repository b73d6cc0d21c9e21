#!/usr/bin/env bash
# Builds bin/skerry, bin/skerry-guest and bin/runsc, each only when it changed.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

command -v go >/dev/null || { echo "Skerry is built with Go 1.26 or newer: https://go.dev/dl/" >&2; exit 1; }
export CGO_ENABLED=0
mkdir -p bin .cache

version=$(git describe --tags --always --dirty 2>/dev/null || echo unknown)
go build -buildvcs=false -ldflags "-s -w -X main.version=$version" -o bin/ ./cmd/skerry ./cmd/skerry-guest

# gVisor's runsc is a Go module like any other, pinned in its own file. An
# unstamped build calls itself VERSION_MISSING, and then all builds look equal
# to a restore; so it carries its pin.
stamp=$(cat tools/runsc.mod tools/runsc.sum tools/build.sh <(go env GOVERSION GOARCH) | sha256sum | cut -d' ' -f1)
if [[ ! -x bin/runsc || $(cat .cache/runsc.stamp 2>/dev/null) != "$stamp" ]]; then
	pin=$(awk '$1 == "gvisor.dev/gvisor" { print $2 }' tools/runsc.mod)
	echo "building runsc $pin (once, about two minutes)"
	go build -buildvcs=false -modfile=tools/runsc.mod \
		-ldflags "-s -w -X gvisor.dev/gvisor/runsc/version.version=$pin-skerry" \
		-o bin/runsc.new gvisor.dev/gvisor/runsc
	mv bin/runsc.new bin/runsc
	echo "$stamp" >.cache/runsc.stamp
fi
