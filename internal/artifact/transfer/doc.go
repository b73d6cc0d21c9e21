// Package transfer moves artifacts between hosts and the control plane. A host
// holds no credentials of the store: it is given a URL whose path carries a
// grant, signed and expiring, that allows one thing. Paths, below the base
// given to the Signer:
//
//	GET  /v1/store/<grant>/manifest         the manifest, with a URL per chunk
//	GET  /v1/store/<grant>/chunks/<digest>  a chunk named in that manifest
//	POST /v1/store/<grant>/chunks           which of these chunks are missing
//	PUT  /v1/store/<grant>/chunks/<digest>  store a chunk
//	PUT  /v1/store/<grant>/manifest         store the manifest, last
//
// URLs in answers are relative to the address asked, or absolute where they
// point elsewhere (a presigned URL of an object store). The sender's claims are
// checked by whoever receives: the server hashes each chunk and makes sure that
// a manifest's chunks are all there; the host hashes each chunk and, at the end,
// the whole file, before anything is made of it.
//
// Errors are JSON: {"error":{"code","reason","message"}}.
package transfer
