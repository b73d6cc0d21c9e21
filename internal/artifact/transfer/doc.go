// Package transfer moves artifacts between hosts and the control plane. A host
// holds no credentials of the store: it is given a URL whose path carries a
// grant, signed and expiring, that allows one thing to one host. Each request is
// answered as the Ledger says at that moment. Paths, below the base given to the
// Signer:
//
//	GET  /v1/store/<grant>/manifest         the manifest
//	POST /v1/store/<grant>/urls             where these chunks are
//	GET  /v1/store/<grant>/chunks/<digest>  a chunk of the artifact
//	POST /v1/store/<grant>/chunks           claim chunks, and hear which are missing
//	PUT  /v1/store/<grant>/chunks/<digest>  store a claimed chunk
//	PUT  /v1/store/<grant>/manifest         store the manifest, last
//
// URLs in answers are relative to the address asked, or absolute where they
// point elsewhere (presigned ones of an object store). The sender's claims are
// checked by whoever receives: the server, or the object store, the digest of
// each chunk it takes; the control plane that a manifest's chunks are all there;
// the host each chunk before it opens it, its content, and at the end every whole
// file, before anything is made of it.
//
// Content under a key is a zstd frame sealed with AES-256-GCM. The key of a
// chunk follows from the team's key and the content, the nonce from the frame:
// the same content is the same bytes within a team, and nothing is the same
// across teams.
//
// Errors are JSON: {"error":{"code","reason","message","details"}}.
package transfer
