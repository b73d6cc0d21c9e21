#!/usr/bin/env bash
# Builds a tool pinned in tools/<mod>.mod into .cache/bin, once per pin, and
# prints its path: tools/tool.sh <mod> <package>.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
mod=$1 package=$2 name=${2##*/}
mkdir -p .cache/bin
stamp=$(cat "tools/$mod.mod" "tools/$mod.sum" <(go env GOVERSION) | sha256sum | cut -d' ' -f1)
if [[ ! -x .cache/bin/$name || $(cat ".cache/bin/$name.stamp" 2>/dev/null) != "$stamp" ]]; then
	echo "building $name" >&2
	go build -buildvcs=false -modfile="tools/$mod.mod" -o ".cache/bin/$name" "$package"
	echo "$stamp" >".cache/bin/$name.stamp"
fi
echo "$PWD/.cache/bin/$name"
