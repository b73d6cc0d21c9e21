#!/usr/bin/env bash
# Installs the Debian packages that Skerry needs, and nothing when all are
# there: `tools/deps.sh` for running it, `tools/deps.sh test` for its tests too.
set -euo pipefail

have() { command -v "$1" >/dev/null 2>&1 || [[ -x /usr/sbin/$1 || -x /sbin/$1 ]]; }
have_postgres() { have postgres || compgen -G '/usr/lib/postgresql/*/bin/postgres' >/dev/null; }

missing=()
need() { # need <package> <check…>
	local package=$1
	shift
	"$@" || missing+=("$package")
}

need postgresql have_postgres
need mmdebstrap have mmdebstrap
need erofs-utils have mkfs.erofs
need nftables have nft
need iproute2 have ip
need git have git
need ca-certificates test -s /etc/ssl/certs/ca-certificates.crt
if [[ ${1:-} == test ]]; then
	need gcc have gcc # for the race detector
	need libc6-dev test -e /usr/include/stdlib.h
	need chromium have chromium # the dashboard, as people see it
	need qemu-system-x86 have qemu-system-x86_64 # machines
	need e2fsprogs have mkfs.ext4
fi
((${#missing[@]})) || exit 0

if ! have apt-get; then
	echo "Skerry needs these Debian packages: ${missing[*]}. This machine has no apt-get: install their like by hand and run this again." >&2
	exit 1
fi
root=()
if ((EUID != 0)); then
	if ! have sudo; then
		echo "Installing ${missing[*]} needs root, and there is no sudo. Run this as root: apt-get install ${missing[*]}" >&2
		exit 1
	fi
	root=(sudo)
fi

# Debian's package makes and starts a cluster of its own. Skerry runs a private
# one, so a machine without PostgreSQL keeps none but that; where the file or
# the package exists already, nothing is touched.
conf=/etc/postgresql-common/createcluster.conf
if [[ " ${missing[*]} " == *' postgresql '* && ! -e $conf ]]; then
	"${root[@]}" mkdir -p "${conf%/*}"
	echo 'create_main_cluster = false' | "${root[@]}" tee "$conf" >/dev/null
fi

echo "installing: ${missing[*]}"
export DEBIAN_FRONTEND=noninteractive
"${root[@]}" apt-get update -qq
"${root[@]}" env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends \
	-o Dpkg::Options::=--force-confold "${missing[@]}" >/dev/null
