package cli

import (
	"crypto/ed25519"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"time"

	"skerry.dev/skerry/internal/audittrail"
	"skerry.dev/skerry/sdk"
)

type auditCmd struct {
	List   auditListCmd   `cmd:"" aliases:"ls" help:"Show what was done in the team, newest first."`
	Export auditExportCmd `cmd:"" help:"Write the team's whole trail with its signed head."`
	Verify auditVerifyCmd `cmd:"" help:"Check an exported trail, without any server."`
}

type auditListCmd struct {
	Resource []string `help:"Only of these types, comma separated." placeholder:"TYPE"`
	Action   []string `help:"Only these actions, comma separated." placeholder:"ACTION"`
	Limit    int      `help:"At most so many." default:"50" placeholder:"N"`
	AllTeams bool     `help:"Of all teams (platform admins)." xor:"whose"`
	Team     string   `help:"Of this team (platform admins)." placeholder:"ID" xor:"whose"`
}

func (cmd *auditListCmd) Run(e *Env, g *Globals) error {
	c, end, err := e.session(g)
	if err != nil {
		return err
	}
	defer end()
	list, err := collect(c.AuditLogs(e.Context, sdk.AuditFilter{
		ResourceTypes: cmd.Resource, Actions: cmd.Action, AllTeams: cmd.AllTeams, TeamID: cmd.Team,
	}), cmd.Limit)
	if err != nil {
		return err
	}
	return printList(e, g, list, "Nothing was recorded.", []string{"AT", "WHO", "WHAT", "RESOURCE", "STATUS", "FROM", "ID"}, func(l sdk.AuditLog) []string {
		who := l.Actor.Name
		if who == "" {
			who = string(l.Actor.Type)
		}
		return []string{
			l.CreatedAt.Local().Format("2006-01-02 15:04:05.000"), who, l.ResourceType + " " + l.Action, l.ResourceID, string(l.Status), l.IP, l.ID,
		}
	})
}

type auditExportCmd struct {
	File string `arg:"" optional:"" help:"Where to; without it to the output." type:"path"`
	Team string `help:"Of this team (platform admins)." placeholder:"ID"`
}

// Run writes the file whole or not at all.
func (cmd *auditExportCmd) Run(e *Env, g *Globals) error {
	c, end, err := e.session(g)
	if err != nil {
		return err
	}
	defer end()
	trail, err := c.ExportAudit(e.Context, cmd.Team)
	if err != nil {
		return err
	}
	defer trail.Close()
	if cmd.File == "" {
		_, err := io.Copy(e.Stdout, trail)
		return err
	}
	file, err := os.CreateTemp(filepath.Dir(cmd.File), ".skerry-audit-*")
	if err != nil {
		return err
	}
	defer os.Remove(file.Name()) // nothing after the rename
	_, err = io.Copy(file, trail)
	if err = errors.Join(err, file.Sync(), file.Close()); err != nil {
		return err
	}
	return os.Rename(file.Name(), cmd.File)
}

type auditVerifyCmd struct {
	File     string `arg:"" help:"The exported trail; - reads it from the input."`
	Key      string `help:"The server's public key for audit trails, base64, kept from before." placeholder:"BASE64" xor:"keys"`
	KeysFrom string `name:"keys-from" help:"Ask this server for its keys." placeholder:"URL" xor:"keys"`
}

// Run ends with exit code 1 when the trail was tampered with, and names where.
func (cmd *auditVerifyCmd) Run(e *Env, g *Globals) error {
	keys, err := cmd.keys(e)
	if err != nil {
		return err
	}
	in := e.Stdin
	if cmd.File != "-" {
		if in, err = os.Open(cmd.File); err != nil {
			return err
		}
		defer in.Close()
	}
	report, err := audittrail.Verify(in, keys)
	if err != nil {
		return err
	}
	if !report.Signed {
		fmt.Fprintln(e.Stderr, "skerry: the signature was not checked: whoever could rewrite the whole file could make this one. Give --key or --keys-from.")
	}
	if g.Output == "json" {
		return printJSON(e.Stdout, map[string]any{
			"team_id": report.TeamID, "entries": report.Entries, "first_seq": report.First, "last_seq": report.Last,
			"signed_at": report.At, "kid": report.KID, "signature_checked": report.Signed,
		})
	}
	if report.First > 1 {
		fmt.Fprintf(e.Stdout, "Entries 1 to %d went by retention before.\n", report.First-1)
	}
	fmt.Fprintf(e.Stdout, "The trail of %s is whole: %d entries, %d to %d, as of %s.\n",
		report.TeamID, report.Entries, report.First, report.Last, report.At.Local().Format(time.DateTime))
	if report.Signed {
		fmt.Fprintf(e.Stdout, "Signed by key %s.\n", clean(report.KID))
	}
	return nil
}

// keys is nil when neither was given.
func (cmd *auditVerifyCmd) keys(e *Env) (audittrail.Keys, error) {
	switch {
	case cmd.Key != "":
		key, err := publicKey(cmd.Key)
		if err != nil {
			return nil, err
		}
		return func(string) (ed25519.PublicKey, bool) { return key, true }, nil
	case cmd.KeysFrom != "":
		c, err := sdk.New(cmd.KeysFrom, e.options()...)
		if err != nil {
			return nil, err
		}
		known, err := c.AuditKeys(e.Context)
		if err != nil {
			return nil, err
		}
		keys := map[string]ed25519.PublicKey{}
		for _, k := range known {
			if keys[k.Kid], err = publicKey(k.PublicKey); err != nil {
				return nil, fmt.Errorf("%s: %w", c.URL(), err)
			}
		}
		return func(kid string) (ed25519.PublicKey, bool) { key, ok := keys[kid]; return key, ok }, nil
	}
	return nil, nil
}

func publicKey(text string) (ed25519.PublicKey, error) {
	raw, err := base64.StdEncoding.DecodeString(text)
	if err != nil || len(raw) != ed25519.PublicKeySize {
		return nil, &usageError{"a public key is 32 bytes in base64, as /v1/audit-logs/keys shows them"}
	}
	return raw, nil
}
