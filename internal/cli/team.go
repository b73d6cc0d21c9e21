package cli

import (
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"

	"skerry.dev/skerry/sdk"
)

type teamCmd struct {
	List        teamListCmd        `cmd:"" aliases:"ls" help:"List my teams."`
	Create      teamCreateCmd      `cmd:"" help:"Make a team; I become its owner."`
	Show        teamShowCmd        `cmd:"" help:"Show a team."`
	Rename      teamRenameCmd      `cmd:"" help:"Give a team another name."`
	Delete      teamDeleteCmd      `cmd:"" aliases:"rm" help:"Delete a team with its keys and sandboxes, for good."`
	Transfer    teamTransferCmd    `cmd:"" help:"Hand a team over to another member."`
	Leave       teamLeaveCmd       `cmd:"" help:"Leave a team."`
	Members     teamMembersCmd     `cmd:"" help:"List who is in a team."`
	Add         teamAddCmd         `cmd:"" help:"Add somebody who has an account."`
	Role        teamRoleCmd        `cmd:"" help:"Make a member admin or member."`
	Remove      teamRemoveCmd      `cmd:"" help:"Put somebody out of a team."`
	Invite      teamInviteCmd      `cmd:"" help:"Make a link by which one person can join."`
	Invitations teamInvitationsCmd `cmd:"" help:"List open invitations."`
	Uninvite    teamUninviteCmd    `cmd:"" help:"Withdraw an invitation."`
	Accept      teamAcceptCmd      `cmd:"" help:"Join a team by a link."`
	Switch      teamSwitchCmd      `cmd:"" help:"Make a team the active one of the kept login."`
	Limits      teamLimitsCmd      `cmd:"" help:"What the active team may have, and what it has."`
}

// which is the flag of commands that work on one of my teams.
type which struct {
	Team string `help:"Its id, slug or name; without it the active one." placeholder:"TEAM"`
}

// find returns the id of the team that is meant.
func (w which) find(e *Env, c *sdk.Client) (string, error) {
	if w.Team == "" {
		me, err := c.Me(e.Context)
		if err != nil {
			return "", err
		}
		if me.Team.Null {
			return "", errors.New("you have no active team: name one with --team, choose one with `skerry team switch`, or make one with `skerry team create`")
		}
		return me.Team.Value.ID, nil
	}
	return mine(e, c, w.Team)
}

// mine finds one of the caller's teams by id, slug or name.
func mine(e *Env, c *sdk.Client, word string) (string, error) {
	if strings.HasPrefix(word, "team-") {
		return word, nil
	}
	teams, err := c.Teams(e.Context)
	if err != nil {
		return "", err
	}
	var named []string
	for _, t := range teams {
		if t.Slug == word {
			return t.ID, nil
		}
		if t.Name == word {
			named = append(named, t.ID)
		}
	}
	switch len(named) {
	case 1:
		return named[0], nil
	case 0:
		return "", fmt.Errorf("you are in no team %q: `skerry team list` shows yours", word)
	}
	return "", fmt.Errorf("%d of your teams are called %q: say which by its id or slug", len(named), word)
}

// user finds a member by id or email.
func user(e *Env, c *sdk.Client, team, word string) (string, error) {
	if strings.HasPrefix(word, "usr-") {
		return word, nil
	}
	for m, err := range c.Members(e.Context, team) {
		if err != nil {
			return "", err
		}
		if strings.EqualFold(m.Email, word) {
			return m.UserID, nil
		}
	}
	return "", fmt.Errorf("%s is not in the team: `skerry team members` shows who is", word)
}

// onTeam logs in, finds the team and works on it.
func (w which) onTeam(e *Env, g *Globals, work func(c *sdk.Client, team string) error) error {
	c, end, err := e.session(g)
	if err != nil {
		return err
	}
	defer end()
	team, err := w.find(e, c)
	if err != nil {
		return err
	}
	return work(c, team)
}

type teamListCmd struct{}

func (cmd *teamListCmd) Run(e *Env, g *Globals) error {
	c, end, err := e.session(g)
	if err != nil {
		return err
	}
	defer end()
	teams, err := c.Teams(e.Context)
	if err != nil {
		return err
	}
	return printList(e, g, teams, "No teams. `skerry team create` makes one.", []string{"NAME", "SLUG", "ROLE", "OWN HOSTS", "ID"}, func(t sdk.Team) []string {
		return []string{t.Name, t.Slug, string(t.Role), yes(t.IsByoc), t.ID}
	})
}

func yes(v bool) string {
	if v {
		return "yes"
	}
	return "no"
}

type teamCreateCmd struct {
	Name string `arg:"" help:"1 to 128 characters."`
}

func (cmd *teamCreateCmd) Run(e *Env, g *Globals) error {
	c, end, err := e.session(g)
	if err != nil {
		return err
	}
	defer end()
	t, err := c.CreateTeam(e.Context, cmd.Name)
	if err != nil {
		return err
	}
	return printTeam(e, g, t)
}

func printTeam(e *Env, g *Globals, t *sdk.Team) error {
	if g.Output == "json" {
		return printJSON(e.Stdout, t)
	}
	printFields(e.Stdout, [][2]string{{"Name", t.Name}, {"Slug", t.Slug}, {"Role", string(t.Role)}, {"Own hosts", yes(t.IsByoc)}, {"Id", t.ID}})
	return nil
}

type teamShowCmd struct{ which }

func (cmd *teamShowCmd) Run(e *Env, g *Globals) error {
	return cmd.onTeam(e, g, func(c *sdk.Client, team string) error {
		t, err := c.Team(e.Context, team)
		if err != nil {
			return err
		}
		if g.Output == "json" {
			return printJSON(e.Stdout, t)
		}
		if err := printTeam(e, g, &t.Team); err != nil {
			return err
		}
		fmt.Fprintln(e.Stdout)
		return printMembers(e, g, t.Members)
	})
}

type teamRenameCmd struct {
	Name string `arg:"" help:"The new name."`
	which
}

func (cmd *teamRenameCmd) Run(e *Env, g *Globals) error {
	return cmd.onTeam(e, g, func(c *sdk.Client, team string) error {
		t, err := c.RenameTeam(e.Context, team, cmd.Name)
		if err != nil {
			return err
		}
		return printTeam(e, g, t)
	})
}

type teamDeleteCmd struct {
	Team string `arg:"" help:"Its id, slug or name."`
	Yes  bool   `help:"It is meant: all its sandboxes and snapshots are lost."`
}

func (cmd *teamDeleteCmd) Run(e *Env, g *Globals) error {
	if !cmd.Yes {
		return errors.New("deleting a team ends its sandboxes and keys for good; add --yes when that is meant")
	}
	c, end, err := e.session(g)
	if err != nil {
		return err
	}
	defer end()
	team, err := mine(e, c, cmd.Team)
	if err != nil {
		return err
	}
	return c.DeleteTeam(e.Context, team)
}

type teamTransferCmd struct {
	User string `arg:"" help:"The member's email or id."`
	which
}

func (cmd *teamTransferCmd) Run(e *Env, g *Globals) error {
	return cmd.onTeam(e, g, func(c *sdk.Client, team string) error {
		to, err := user(e, c, team, cmd.User)
		if err != nil {
			return err
		}
		t, err := c.TransferTeam(e.Context, team, to)
		if err != nil {
			return err
		}
		return printTeam(e, g, t)
	})
}

type teamLeaveCmd struct {
	Team string `arg:"" help:"Its id, slug or name."`
}

func (cmd *teamLeaveCmd) Run(e *Env, g *Globals) error {
	return which{cmd.Team}.onTeam(e, g, func(c *sdk.Client, team string) error { return c.LeaveTeam(e.Context, team) })
}

type teamMembersCmd struct{ which }

func (cmd *teamMembersCmd) Run(e *Env, g *Globals) error {
	return cmd.onTeam(e, g, func(c *sdk.Client, team string) error {
		list, err := collect(c.Members(e.Context, team), 0)
		if err != nil {
			return err
		}
		return printMembers(e, g, list)
	})
}

func printMembers(e *Env, g *Globals, list []sdk.Member) error {
	return printList(e, g, list, "Nobody.", []string{"NAME", "EMAIL", "ROLE", "SINCE", "ID"}, func(m sdk.Member) []string {
		return []string{m.Name, m.Email, string(m.Role), age(m.JoinedAt), m.UserID}
	})
}

type teamAddCmd struct {
	Email string `arg:"" help:"Of an account."`
	Role  string `enum:"admin,member" default:"member" help:"${enum}."`
	which
}

func (cmd *teamAddCmd) Run(e *Env, g *Globals) error {
	return cmd.onTeam(e, g, func(c *sdk.Client, team string) error {
		m, err := c.AddMember(e.Context, team, cmd.Email, cmd.Role)
		if err != nil {
			return err
		}
		return printMembers(e, g, []sdk.Member{*m})
	})
}

type teamRoleCmd struct {
	User string `arg:"" help:"The member's email or id."`
	Role string `arg:"" enum:"admin,member" help:"${enum}."`
	which
}

func (cmd *teamRoleCmd) Run(e *Env, g *Globals) error {
	return cmd.onTeam(e, g, func(c *sdk.Client, team string) error {
		id, err := user(e, c, team, cmd.User)
		if err != nil {
			return err
		}
		m, err := c.SetRole(e.Context, team, id, cmd.Role)
		if err != nil {
			return err
		}
		return printMembers(e, g, []sdk.Member{*m})
	})
}

type teamRemoveCmd struct {
	User       string `arg:"" help:"The member's email or id."`
	RevokeKeys bool   `help:"Also revoke the API keys they made here."`
	which
}

func (cmd *teamRemoveCmd) Run(e *Env, g *Globals) error {
	return cmd.onTeam(e, g, func(c *sdk.Client, team string) error {
		id, err := user(e, c, team, cmd.User)
		if err != nil {
			return err
		}
		r, err := c.RemoveMember(e.Context, team, id, cmd.RevokeKeys)
		if err != nil {
			return err
		}
		if g.Output == "json" {
			return printJSON(e.Stdout, r)
		}
		switch {
		case len(r.APIKeys) == 0:
			return nil
		case r.Revoked:
			fmt.Fprintln(e.Stderr, "These API keys are revoked:")
		default:
			fmt.Fprintln(e.Stderr, "These API keys are the team's and go on working; `skerry key rm` revokes one:")
		}
		return printList(e, g, r.APIKeys, "", []string{"NAME", "KEY", "SCOPES", "AGE", "ID"}, func(k sdk.APIKey) []string {
			return []string{k.Name, k.Prefix + "…", strings.Join(k.Scopes, ","), age(k.CreatedAt), k.ID}
		})
	})
}

type teamInviteCmd struct {
	Email   string        `help:"Only this account may accept; without it whoever has the link." placeholder:"EMAIL"`
	Role    string        `enum:"admin,member" default:"member" help:"${enum}."`
	Expires time.Duration `help:"How long the link works: 1h to 720h." default:"168h"`
	which
}

func (cmd *teamInviteCmd) Run(e *Env, g *Globals) error {
	return cmd.onTeam(e, g, func(c *sdk.Client, team string) error {
		made, err := c.Invite(e.Context, team, cmd.Email, cmd.Role, cmd.Expires)
		if err != nil {
			return err
		}
		if g.Output == "json" {
			return printJSON(e.Stdout, made)
		}
		fmt.Fprintf(e.Stderr, "One person can join with this link within %s; it is shown this once:\n", strings.TrimPrefix(age(made.Invitation.ExpiresAt), "in "))
		fmt.Fprintln(e.Stdout, clean(made.URL))
		return nil
	})
}

type teamInvitationsCmd struct{ which }

func (cmd *teamInvitationsCmd) Run(e *Env, g *Globals) error {
	return cmd.onTeam(e, g, func(c *sdk.Client, team string) error {
		list, err := collect(c.Invitations(e.Context, team), 0)
		if err != nil {
			return err
		}
		return printList(e, g, list, "No open invitations.", []string{"FOR", "ROLE", "BY", "AGE", "ENDS", "ID"}, func(i sdk.Invitation) []string {
			whom := i.Email
			if whom == "" {
				whom = "whoever has the link"
			}
			return []string{whom, string(i.Role), i.CreatedBy, age(i.CreatedAt), age(i.ExpiresAt), i.ID}
		})
	})
}

type teamUninviteCmd struct {
	ID string `arg:"" help:"The invitation's id."`
	which
}

func (cmd *teamUninviteCmd) Run(e *Env, g *Globals) error {
	return cmd.onTeam(e, g, func(c *sdk.Client, team string) error { return c.RevokeInvitation(e.Context, team, cmd.ID) })
}

type teamAcceptCmd struct {
	Link string `arg:"" help:"The link, or the token at its end."`
}

func (cmd *teamAcceptCmd) Run(e *Env, g *Globals) error {
	c, end, err := e.session(g)
	if err != nil {
		return err
	}
	defer end()
	token := cmd.Link
	if _, after, found := strings.Cut(token, "#invitation="); found {
		token = after
	}
	t, err := c.AcceptInvitation(e.Context, token)
	if err != nil {
		return err
	}
	return printTeam(e, g, t)
}

type teamLimitsCmd struct{}

func (cmd *teamLimitsCmd) Run(e *Env, g *Globals) error {
	c, err := e.client(g)
	if err != nil {
		return err
	}
	l, err := c.Limits(e.Context)
	if err != nil {
		return err
	}
	return printLimits(e, g, l)
}

func printLimits(e *Env, g *Globals, l *sdk.Limits) error {
	if g.Output == "json" {
		return printJSON(e.Stdout, l)
	}
	whole := func(name string, limit, used int64) []string {
		return []string{name, strconv.FormatInt(used, 10), strconv.FormatInt(limit, 10)}
	}
	printTable(e.Stdout, []string{"", "USED", "LIMIT"}, [][]string{
		whole("sandboxes", l.Sandboxes.Limit, l.Sandboxes.Used),
		{"vcpus", number(l.Vcpus.Used), number(l.Vcpus.Limit)},
		whole("memory_mb", l.MemoryMB.Limit, l.MemoryMB.Used),
		whole("disk_mb", l.DiskMB.Limit, l.DiskMB.Used),
		whole("stored_mb", l.StoredMB.Limit, l.StoredMB.Used),
		whole("api_keys", l.APIKeys.Limit, l.APIKeys.Used),
		whole("hosts", l.Hosts.Limit, l.Hosts.Used),
		whole("templates", l.Templates.Limit, l.Templates.Used),
	})
	return nil
}

type teamSwitchCmd struct {
	Team string `arg:"" help:"Its id, slug or name."`
}

func (cmd *teamSwitchCmd) Run(e *Env, g *Globals) error {
	found, err := e.find(g)
	if err != nil {
		return err
	}
	if !found.login {
		return errors.New("only a login that is kept has an active team to switch: run `skerry login` first")
	}
	c, err := e.keptClient(found.URL)
	if err != nil {
		return err
	}
	team, err := mine(e, c, cmd.Team)
	if err != nil {
		return err
	}
	login, err := c.SwitchTeam(e.Context, team)
	if err != nil {
		return err
	}
	if login.Team.Null {
		return errors.New("the team has just gone")
	}
	err = e.alone(func() error {
		k, err := e.kept()
		if err != nil || k.URL != found.URL || k.Refresh == "" {
			return err // logged out meanwhile
		}
		return e.keep(k.goesOn(login))
	})
	return errors.Join(err, printTeam(e, g, &login.Team.Value))
}
