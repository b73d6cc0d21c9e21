// Package migrations holds the schema, as goose applies it. The baseline is
// never edited once released; later files only add.
package migrations

import "embed"

// FS holds the numbered .sql files.
//
//go:embed *.sql
var FS embed.FS
