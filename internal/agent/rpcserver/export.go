package rpcserver

import (
	"context"

	"connectrpc.com/connect"

	agentv1 "skerry.dev/skerry/gen/agentrpc/agent/v1"
	"skerry.dev/skerry/internal/kernel/errs"
	"skerry.dev/skerry/internal/kernel/id"
	"skerry.dev/skerry/internal/rpcerr"
)

func exportOf(in *agentv1.ExportImageRequest) (ExportRequest, error) {
	sandbox, err := id.Sandbox{}.ParseBare(in.GetSandboxId())
	if err != nil {
		return ExportRequest{}, err
	}
	req := ExportRequest{Sandbox: sandbox, Incarnation: in.GetIncarnation(), To: sourceOf(in.GetTo())}
	if req.To.URL == "" {
		return ExportRequest{}, errs.Field("to.url", "Say where the image is to be stored.")
	}
	return req, nil
}

// ExportImage may be repeated: it makes the image of what the sandbox is then.
func (s *service) ExportImage(ctx context.Context, in *agentv1.ExportImageRequest, out *connect.ServerStream[agentv1.ExportImageResponse]) error {
	req, err := exportOf(in)
	if err != nil {
		return rpcerr.ToConnect(err)
	}
	err = logged(ctx, func(line string) error {
		return out.Send(&agentv1.ExportImageResponse{Message: &agentv1.ExportImageResponse_Log{Log: line}})
	}, func(built *agentv1.BuiltImage) error {
		return out.Send(&agentv1.ExportImageResponse{Message: &agentv1.ExportImageResponse_Result{Result: built}})
	}, func(ctx context.Context, log func(string)) (BuiltImage, error) { return s.imager.Export(ctx, req, log) })
	if err != nil {
		return rpcerr.ToConnect(err)
	}
	return nil
}
