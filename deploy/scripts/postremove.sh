#!/bin/sh
# After the programs went. What sandboxes and servers keep is not ours to delete.
set -e
if [ -d /run/systemd/system ]; then
	systemctl daemon-reload
fi
if [ "$1" = purge ]; then
	rm -f /etc/skerry/agent.env /etc/skerry/server.env
	rmdir --ignore-fail-on-non-empty /etc/skerry 2>/dev/null || true
	for dir in /var/lib/skerry /var/lib/skerry-server; do
		[ ! -d "$dir" ] || echo "$dir is left as it is."
	done
fi
