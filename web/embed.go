// Package web is the dashboard: a Svelte app, built by tools/build.sh into dist
// and carried in the program.
package web

import (
	"embed"
	"io/fs"
)

//go:embed all:dist
var dist embed.FS

// Dashboard is the built app, its index.html at the root. In a program that was
// built without it there is no index.html.
func Dashboard() fs.FS {
	sub, err := fs.Sub(dist, "dist")
	if err != nil {
		panic(err) // the name is a constant that the compiler has checked
	}
	return sub
}
