// Package browser looks at the dashboard as people do: Debian's Chromium on the
// app that bin/skerry carries, with a real server, a real database and real
// sandboxes behind it.
//
// Each test plays one script of this directory (*.mjs) in Node, and each step of
// a script is a subtest. One browser and one installation serve all of them.
// Pictures of the pages go to SKERRY_SCREENSHOTS, .cache/screenshots of the
// checkout when that is empty.
package browser
