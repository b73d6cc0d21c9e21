#!/usr/bin/env bash
# Packs bin/ into a Debian package and prints its path: tools/deb.sh [directory].
# The same commit gives the same version and the same times in it.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
out=${1:-dist}

export SKERRY_DEB_BIN=${SKERRY_DEB_BIN:-bin}
for program in skerry skerry-guest runsc; do
	[[ -x $SKERRY_DEB_BIN/$program ]] || { echo "$SKERRY_DEB_BIN/$program is missing: make build" >&2; exit 1; }
done
# A tag v1.2.3 is version 1.2.3; what comes after it sorts after it, and what
# comes before the first tag before everything.
described=$(git describe --tags --match 'v[0-9]*' 2>/dev/null || true)
if [[ -n $described ]]; then
	version=${described#v}
	version=${version/-/+}
else
	version=0~$(git rev-list --count HEAD).$(git rev-parse --short HEAD)
fi
SKERRY_DEB_VERSION=${version//-/.}
SKERRY_DEB_ARCH=$(go env GOARCH)
SOURCE_DATE_EPOCH=$(git log -1 --format=%ct)
export SKERRY_DEB_VERSION SKERRY_DEB_ARCH SOURCE_DATE_EPOCH

mkdir -p "$out"
package=$out/skerry_${SKERRY_DEB_VERSION}_$SKERRY_DEB_ARCH.deb
nfpm=$(tools/tool.sh nfpm github.com/goreleaser/nfpm/v2/cmd/nfpm)
# A reader finds a whole package or none.
"$nfpm" package --config deploy/nfpm.yaml --packager deb --target "$package.new.deb" >&2
mv "$package.new.deb" "$package"
echo "$package"
