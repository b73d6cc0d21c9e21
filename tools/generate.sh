#!/usr/bin/env bash
# Runs the generators whose inputs changed. gen/.inputs keeps, per generator,
# the hash of what it reads and of what it wrote; `--check` fails when either
# no longer fits, without building a generator.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
record=gen/.inputs
touch "$record"

# hash <path…>: one hash over names and contents; a missing path is no file.
hash() {
	find "$@" -type f 2>/dev/null | LC_ALL=C sort | tr '\n' '\0' | xargs -0r sha256sum | sha256sum | cut -c1-32
}
sql_inputs() { find internal -name '*.sql' -not -path '*/testdata/*'; echo sqlc.yaml; }
sql_outputs() { find internal -type d -name sqlcgen; }

inputs() {
	case $1 in
	proto) hash api/proto buf.yaml buf.gen.yaml tools/buf.mod tools/protoc-gen.mod ;;
	openapi) hash api/openapi tools/joinapi tools/ogen.yml tools/ogen.mod ;;
	sqlc) hash db/migrations tools/sqlc.mod $(sql_inputs) ;;
	esac
}
outputs() {
	case $1 in
	proto) hash gen/agentrpc gen/guestrpc ;;
	openapi) hash gen/restapi api/openapi.yaml ;;
	sqlc) hash $(sql_outputs) /dev/null ;;
	esac
}
generate() {
	case $1 in
	proto)
		tools/tool.sh protoc-gen google.golang.org/protobuf/cmd/protoc-gen-go >/dev/null
		tools/tool.sh protoc-gen connectrpc.com/connect/cmd/protoc-gen-connect-go >/dev/null
		PATH="$PWD/.cache/bin:$PATH" "$(tools/tool.sh buf github.com/bufbuild/buf/cmd/buf)" generate
		;;
	openapi)
		go run ./tools/joinapi api/openapi api/openapi.yaml gen/restapi/openapi.yaml
		"$(tools/tool.sh ogen github.com/ogen-go/ogen/cmd/ogen)" --config tools/ogen.yml --clean --target gen/restapi --package restapi gen/restapi/openapi.yaml
		;;
	sqlc)
		[[ -f sqlc.yaml ]] || return 0
		"$(tools/tool.sh sqlc github.com/sqlc-dev/sqlc/cmd/sqlc)" generate
		;;
	esac
}

stale=0
for name in proto openapi sqlc; do
	want="$name $(inputs "$name") $(outputs "$name")"
	if grep -qxF "$want" "$record"; then continue; fi
	if [[ ${1:-} == --check ]]; then
		echo "generated code does not fit its sources ($name): run make generate and commit the result" >&2
		stale=1
		continue
	fi
	echo "generating $name"
	generate "$name"
	{ grep -v "^$name " "$record" || true; echo "$name $(inputs "$name") $(outputs "$name")"; } | sort >"$record.new"
	mv "$record.new" "$record"
done
exit "$stale"
