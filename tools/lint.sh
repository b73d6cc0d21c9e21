#!/usr/bin/env bash
# Format, vet, lint, generated code: what needs no running anything.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

mapfile -t files < <(git ls-files -co --exclude-standard '*.go' | grep -Ev '^gen/|/sqlcgen/' | while read -r f; do [[ -e $f ]] && echo "$f"; done)
unformatted=$("$(tools/tool.sh gofumpt mvdan.cc/gofumpt)" -l "${files[@]}")
if [[ -n $unformatted ]]; then
	echo "not formatted (gofumpt -w):" >&2
	echo "$unformatted" >&2
	exit 1
fi
tools/generate.sh --check
go vet ./...
"$(tools/tool.sh golangci-lint github.com/golangci/golangci-lint/v2/cmd/golangci-lint)" run ./...
