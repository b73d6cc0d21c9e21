// Package sdk is the Go client of Skerry's public API: sandboxes, commands,
// streams, files, templates, keys and hosts.
//
//	client, err := sdk.New("http://127.0.0.1:7070", sdk.WithAPIKey(key))
//	sandbox, err := client.CreateSandbox(ctx, sdk.CreateSandbox{Template: "base"})
//	result, err := client.Exec(ctx, sandbox.ID, sdk.Command{Cmd: "echo hello"})
//
// Every error that the server explained is an *Error with a stable code.
package sdk
