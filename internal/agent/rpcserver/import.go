package rpcserver

import (
	"context"
	"fmt"

	"connectrpc.com/connect"

	agentv1 "skerry.dev/skerry/gen/agentrpc/agent/v1"
	"skerry.dev/skerry/internal/kernel/errs"
	"skerry.dev/skerry/internal/rpcerr"
)

func importOf(in *agentv1.ImportImageRequest) (ImportRequest, error) {
	req := ImportRequest{
		Reference: in.GetReference(), Username: in.GetUsername(), Password: in.GetPassword(),
		Tarball: sourceOf(in.GetTarball()), To: sourceOf(in.GetTo()),
	}
	switch {
	case req.To.URL == "":
		return req, errs.Field("to.url", "Say where the image is to be stored.")
	case (req.Reference == "") == (req.Tarball.URL == ""):
		return req, errs.Field("reference", "Name an image in a registry, or say where a tarball is: one of the two.")
	case len(req.Reference) > maxReference || len(req.Username) > maxReference || len(req.Password) > 4*maxReference:
		return req, errs.Field("reference", fmt.Sprintf("A reference has at most %d characters, and so has a user's name.", maxReference))
	}
	return req, nil
}

// ImportImage may be repeated: an image that is stored already is not sent again.
func (s *service) ImportImage(ctx context.Context, in *agentv1.ImportImageRequest, out *connect.ServerStream[agentv1.ImportImageResponse]) error {
	req, err := importOf(in)
	if err != nil {
		return rpcerr.ToConnect(err)
	}
	err = logged(ctx, func(line string) error {
		return out.Send(&agentv1.ImportImageResponse{Message: &agentv1.ImportImageResponse_Log{Log: line}})
	}, func(built *agentv1.BuiltImage) error {
		return out.Send(&agentv1.ImportImageResponse{Message: &agentv1.ImportImageResponse_Result{Result: built}})
	}, func(ctx context.Context, log func(string)) (BuiltImage, error) { return s.imager.Import(ctx, req, log) })
	if err != nil {
		return rpcerr.ToConnect(err)
	}
	return nil
}
