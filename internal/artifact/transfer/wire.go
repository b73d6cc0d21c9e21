package transfer

import (
	"encoding/json"

	"skerry.dev/skerry/internal/artifact"
)

// maxAsk bounds how many chunks one question names.
const maxAsk = 256

// maxAskBytes bounds the body of a question.
const maxAskBytes = maxAsk * 160

// manifestAnswer is the answer to GET manifest. Manifest is kept as it was
// stored, so that its digest can be checked.
type manifestAnswer struct {
	Manifest json.RawMessage `json:"manifest"`
	Digest   artifact.Digest `json:"manifest_digest"`
	// Direct says that chunks are elsewhere: ask for their URLs.
	Direct bool `json:"direct"`
}

// urlsQuestion and urlsAnswer are the bodies of POST urls.
type urlsQuestion struct {
	Digests []artifact.Digest `json:"digests"`
}

type urlsAnswer struct {
	URLs map[artifact.Digest]string `json:"urls"`
}

// claimQuestion and claimAnswer are the bodies of POST chunks.
type claimQuestion struct {
	Chunks []Piece `json:"chunks"`
}

type claimAnswer struct {
	Missing map[artifact.Digest]target `json:"missing"`
}

// target is where a chunk is put, and the header that goes with it.
type target struct {
	URL    string            `json:"url"`
	Header map[string]string `json:"header,omitempty"`
}

// storedAnswer is the answer to PUT manifest.
type storedAnswer struct {
	Digest artifact.Digest `json:"manifest_digest"`
}

type errorAnswer struct {
	Error errorBody `json:"error"`
}

type errorBody struct {
	Code    string         `json:"code"`
	Reason  string         `json:"reason"`
	Message string         `json:"message"`
	Details map[string]any `json:"details,omitempty"`
}
