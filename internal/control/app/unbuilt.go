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

func (none) CancelBuild(context.Context, restapi.CancelBuildParams) (*restapi.Build, error) {
	return nil, ht.ErrNotImplemented
}

func (none) CreateTemplate(context.Context, *restapi.CreateTemplateRequest, restapi.CreateTemplateParams) (*restapi.Build, error) {
	return nil, ht.ErrNotImplemented
}

func (none) DeleteTemplate(context.Context, restapi.DeleteTemplateParams) error {
	return ht.ErrNotImplemented
}

func (none) GetBuild(context.Context, restapi.GetBuildParams) (*restapi.Build, error) {
	return nil, ht.ErrNotImplemented
}

func (none) ListBuilds(context.Context, restapi.ListBuildsParams) (*restapi.BuildList, error) {
	return nil, ht.ErrNotImplemented
}

func (none) RecoverSandbox(context.Context, restapi.RecoverSandboxParams) (*restapi.Sandbox, error) {
	return nil, ht.ErrNotImplemented
}
