package state

// A state may have its disk beside its image once more, in a form that any later
// build of the engine can boot from.
const (
	diskTar   = "disk.tar.zst"
	diskAbout = "disk.json"
)
