// Package image keeps the host's cache of template images and builds the one
// image Skerry brings itself.
//
// An image is one immutable EROFS file, named by its digest. It is mounted once
// per host, below an overlay whose top layer holds the guest daemon, and all
// sandboxes of a template share that read-only tree and its page cache. Layout
// of the data directory:
//
//	images/<digest>.erofs        the file, 0400
//	images/<digest>.erofs.part   a download that will be resumed
//	guests/<digest>/.skerry/guest the daemon, one directory per build of it: the
//	                             current one, and those that trees are mounted with
//	mounts/<digest>/lower        the image
//	mounts/<digest>/root-<guest> image and daemon merged, what instances are given
//
// Who holds an image is not written down here: the agent's journal knows, and
// Recover is told at the start.
package image
