#!/usr/bin/env bash
# Builds the dashboard, bin/skerry, bin/skerry-guest and bin/runsc, each only when
# it changed.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

command -v go >/dev/null || { echo "Skerry is built with Go 1.26 or newer: https://go.dev/dl/" >&2; exit 1; }
export CGO_ENABLED=0
mkdir -p bin .cache

tools/web.sh

version=$(git describe --tags --always --dirty 2>/dev/null || echo unknown)
go build -buildvcs=false -ldflags "-s -w -X main.version=$version" -o bin/ ./cmd/skerry ./cmd/skerry-guest

# gVisor's runsc is a Go module like any other, pinned in its own file, with the
# patches in tools/runsc. An unstamped build calls itself VERSION_MISSING, and
# then all builds look equal to a restore; so it carries its pin and, since the
# patches are part of what it is, their digest.
#
# Two builds at once would work in the same copy: the second waits, and finds
# that there is nothing left to do. What runs meanwhile keeps a whole binary.
exec 9>.cache/runsc.lock
flock 9
patches=(tools/runsc/*.patch)
stamp=$(cat tools/runsc.mod tools/runsc.sum "${patches[@]}" tools/build.sh <(go env GOVERSION GOARCH) | sha256sum | cut -d' ' -f1)
if [[ ! -x bin/runsc || $(cat .cache/runsc.stamp 2>/dev/null) != "$stamp" ]]; then
	pin=$(awk '$1 == "gvisor.dev/gvisor" { print $2 }' tools/runsc.mod)
	pin+=-skerry.$(cat "${patches[@]}" | sha256sum | cut -c1-8)
	echo "building runsc $pin (once, about two minutes)"
	# The module cache is read-only and checked: the patches go into a copy. With
	# -trimpath, Go's build cache does not mind where that lies, and with a path
	# relative to the checkout neither does the binary.
	copy=$PWD/.cache/runsc.build
	rm -rf "$copy"
	mkdir "$copy"
	go mod download -modfile=tools/runsc.mod gvisor.dev/gvisor
	cp -R "$(go list -modfile=tools/runsc.mod -m -f '{{.Dir}}' gvisor.dev/gvisor)" "$copy/gvisor"
	chmod -R u+w "$copy/gvisor"
	for patch in "${patches[@]}"; do
		# Git must not take the copy for a part of the repository around it.
		GIT_CEILING_DIRECTORIES=$copy git -C "$copy/gvisor" apply "$PWD/$patch"
	done
	cp tools/runsc.mod "$copy/runsc.mod"
	cp tools/runsc.sum "$copy/runsc.sum"
	go mod edit -replace=gvisor.dev/gvisor=./.cache/runsc.build/gvisor "$copy/runsc.mod"
	go build -buildvcs=false -trimpath -modfile="$copy/runsc.mod" \
		-ldflags "-s -w -X gvisor.dev/gvisor/runsc/version.version=$pin" \
		-o "$copy/runsc" gvisor.dev/gvisor/runsc
	mv "$copy/runsc" bin/runsc
	rm -rf "$copy"
	echo "$stamp" >.cache/runsc.stamp
fi
