// Package up is the all-in-one supervisor behind `skerry up` and `skerry down`:
// a private PostgreSQL, the server and the agent of this machine, started in
// order on the same paths as in production, and kept running.
//
// Everything lies in one data directory:
//
//	up.lock          held while an up runs; says who and where
//	secret           SKERRY_SECRET, made once
//	setup.json       what a first start that was cut short had decided
//	join.json        the agent's one-time token, until it is registered
//	credentials.env  for people and programs, written when the setup is done
//	postgres/        the private cluster
//	store/           the artifact store
//	agent/           the agent's own
//	log/             what server and agent say, bounded
//
// Each step finds out what is there and does the rest, so a start that was
// killed anywhere is finished by the next one. Server and agent end with their
// supervisor, whatever ends it; sandboxes and PostgreSQL do not.
package up
