#!/usr/bin/env bash
# Builds the dashboard into web/dist, which is carried in bin/skerry, when it or
# the API's document changed.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

mkdir -p .cache
exec 9>.cache/web.lock
flock 9
inputs() {
	find web -path web/node_modules -prune -o -path web/dist -prune -o -path web/.svelte-kit -prune -o -name schema.d.ts -prune -o -type f -print0 | LC_ALL=C sort -z | xargs -0 cat
	cat api/openapi.yaml tools/web.sh
}
stamp=$(inputs | sha256sum | cut -d' ' -f1)
if [[ -f web/dist/index.html && $(cat .cache/web.stamp 2>/dev/null) == "$stamp" ]]; then
	exit 0
fi
command -v npm >/dev/null || { echo "The dashboard is built with Node.js 20.19 or newer: https://nodejs.org" >&2; exit 1; }

locked=$(sha256sum web/package-lock.json | cut -d' ' -f1)
if [[ $(cat web/node_modules/.skerry-lock 2>/dev/null) != "$locked" ]]; then
	echo "fetching what the dashboard is built with"
	npm ci --prefix web --no-audit --no-fund --loglevel=error
	echo "$locked" >web/node_modules/.skerry-lock
fi
echo "building the dashboard"
cd web
npm run --silent api >/dev/null
log=$(mktemp)
trap 'rm -f "$log"' EXIT
if ! npm run --silent build >"$log" 2>&1; then
	cat "$log" >&2
	exit 1
fi
touch dist/.gitkeep
echo "$stamp" >../.cache/web.stamp
