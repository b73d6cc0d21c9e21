package app

import (
	"context"

	ht "github.com/ogen-go/ogen/http"

	"skerry.dev/skerry/gen/restapi"
)

// unbuilt answers for operations of the document that no room serves yet; it
// lies deeper than those, so that they come first.
type (
	unbuilt struct{ none }
	none    struct{}
)

func (none) RecoverSandbox(context.Context, restapi.RecoverSandboxParams) (*restapi.Sandbox, error) {
	return nil, ht.ErrNotImplemented
}
