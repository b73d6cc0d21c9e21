package transfer

import (
	"encoding/json"

	"skerry.dev/skerry/internal/artifact"
)

// maxAsk bounds how many chunks one question names.
const maxAsk = 1024

// manifestAnswer is the answer to GET manifest. Manifest is kept as it was
// stored, so that its digest can be checked.
type manifestAnswer struct {
	Manifest json.RawMessage            `json:"manifest"`
	Digest   artifact.Digest            `json:"manifest_digest"`
	URLs     map[artifact.Digest]string `json:"urls"`
}

// missingQuestion and missingAnswer are the bodies of POST chunks.
type missingQuestion struct {
	Digests []artifact.Digest `json:"digests"`
}

type missingAnswer struct {
	Missing map[artifact.Digest]string `json:"missing"` // digest to URL
}

// storedAnswer is the answer to PUT manifest.
type storedAnswer struct {
	Digest artifact.Digest `json:"manifest_digest"`
}

type errorAnswer struct {
	Error errorBody `json:"error"`
}

type errorBody struct {
	Code    string `json:"code"`
	Reason  string `json:"reason"`
	Message string `json:"message"`
}
