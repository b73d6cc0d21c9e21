package pg_test

import (
	"testing"

	"skerry.dev/skerry/internal/pg/pgtest"
)

// BenchmarkDatabasePerTest is what a test pays for a database of its own.
func BenchmarkDatabasePerTest(b *testing.B) {
	pgtest.URL(b) // the first one starts the server
	for b.Loop() {
		pgtest.URL(b)
	}
}
