package cli

import (
	"fmt"

	"skerry.dev/skerry/sdk"
)

type hostStraysCmd struct {
	Host    string `arg:"" help:"Its id or name."`
	Destroy string `help:"Have the host destroy this one now, with what is saved of it." placeholder:"SANDBOX"`
}

func (cmd *hostStraysCmd) Run(e *Env, g *Globals) error {
	return onHost(e, g, cmd.Host, func(c *sdk.Client, id string) error {
		if cmd.Destroy != "" {
			return c.DestroyHostStray(e.Context, id, cmd.Destroy)
		}
		list, err := collect(c.HostStrays(e.Context, id), 0)
		if err != nil {
			return err
		}
		return printList(e, g, list, "Nothing is there that is not known.",
			[]string{"SANDBOX", "KIND", "PHASE", "SEEN", "PAUSED", "GOES"}, func(s sdk.HostStray) []string {
				return []string{s.SandboxID, string(s.Kind), s.Phase, fmt.Sprintf("%s ago", age(s.FirstSeenAt)), when(s.PausedAt), when(s.DestroyAt)}
			})
	})
}
