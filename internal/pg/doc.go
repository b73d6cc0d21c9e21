// Package pg is everything that knows PostgreSQL and nothing of any room: the
// pool, transactions, the meaning of SQLSTATEs, migrations, and the private
// cluster that a single machine runs on.
package pg
