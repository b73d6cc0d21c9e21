#!/bin/sh
# After unpacking, at the first time and at an upgrade.
set -e
[ "$1" = configure ] || exit 0

if ! getent passwd skerry >/dev/null; then
	useradd --system --user-group --no-create-home --home-dir /var/lib/skerry-server --shell /usr/sbin/nologin skerry
fi
if [ -d /run/systemd/system ]; then
	systemctl daemon-reload
	# Those that run go on with the new programs; sandboxes do not notice.
	systemctl try-restart skerry-server.service skerry-agent.service
fi
if [ -z "$2" ]; then
	echo "A host joins with the command that \`skerry host create\` prints; \`skerry doctor\` looks at this machine."
fi
