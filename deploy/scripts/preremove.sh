#!/bin/sh
# Before the programs go. At an upgrade nothing is stopped.
set -e
[ "$1" = remove ] || exit 0

if [ -d /run/systemd/system ]; then
	systemctl disable --now skerry-agent.service skerry-server.service
fi
if [ -e /var/lib/skerry/agent/tag ]; then
	echo "Sandboxes of this host go on, and what is saved of them stays in /var/lib/skerry. Removing all of it takes the package: \`skerry down --purge\`."
fi
