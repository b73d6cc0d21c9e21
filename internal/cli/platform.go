package cli

import (
	"fmt"
	"strconv"
	"strings"

	"skerry.dev/skerry/sdk"
)

// AdminCommands are what platform admins do, beside the operator's own.
type AdminCommands struct {
	Users     usersCmd     `cmd:"" help:"List all users."`
	Promote   promoteCmd   `cmd:"" help:"Make a user a platform admin."`
	Demote    demoteCmd    `cmd:"" help:"Make a platform admin a user like others."`
	Disable   disableCmd   `cmd:"" help:"Shut a user out at once."`
	Enable    enableCmd    `cmd:"" help:"Let a user in again."`
	ResetLink resetLinkCmd `cmd:"" help:"Make a link with which a user sets a new password."`
	Teams     teamsCmd     `cmd:"" help:"List all teams."`
	BYOC      byocCmd      `cmd:"" name:"byoc" help:"Let a team bring hosts of its own, or no longer."`
	Limits    limitsCmd    `cmd:"" help:"What any team may have, and what it has."`
	SetLimits setLimitsCmd `cmd:"" help:"Set a team's limits."`
}

// anyone finds a user by id or email.
func anyone(e *Env, c *sdk.Client, word string) (string, error) {
	if strings.HasPrefix(word, "usr-") {
		return word, nil
	}
	for u, err := range c.Users(e.Context, word) {
		if err != nil {
			return "", err
		}
		if strings.EqualFold(u.Email, word) {
			return u.ID, nil
		}
	}
	return "", fmt.Errorf("there is no user %s: `skerry admin users` shows all", word)
}

// anyTeam finds a living team by id, slug or name.
func anyTeam(e *Env, c *sdk.Client, word string) (string, error) {
	if strings.HasPrefix(word, "team-") {
		return word, nil
	}
	var named []string
	for t, err := range c.AllTeams(e.Context, word) {
		switch {
		case err != nil:
			return "", err
		case t.DeletedAt.Set:
		case t.Slug == word:
			return t.ID, nil
		case t.Name == word:
			named = append(named, t.ID)
		}
	}
	switch len(named) {
	case 1:
		return named[0], nil
	case 0:
		return "", fmt.Errorf("there is no team %q: `skerry admin teams` shows all", word)
	}
	return "", fmt.Errorf("%d teams are called %q: say which by its id or slug", len(named), word)
}

func printUsers(e *Env, g *Globals, list []sdk.AdminUser) error {
	return printList(e, g, list, "Nobody.", []string{"NAME", "EMAIL", "PROVEN", "ADMIN", "ACTIVE", "AGE", "LAST LOGIN", "ID"}, func(u sdk.AdminUser) []string {
		return []string{u.Name, u.Email, yes(u.EmailProven), yes(u.IsAdmin), yes(u.IsActive), age(u.CreatedAt), when(u.LastLoginAt), u.ID}
	})
}

type usersCmd struct {
	Search string `arg:"" optional:"" help:"Part of an email or a name."`
	Limit  int    `help:"At most so many." placeholder:"N"`
}

func (cmd *usersCmd) Run(e *Env, g *Globals) error {
	c, end, err := e.session(g)
	if err != nil {
		return err
	}
	defer end()
	list, err := collect(c.Users(e.Context, cmd.Search), cmd.Limit)
	if err != nil {
		return err
	}
	return printUsers(e, g, list)
}

// person is the argument of commands on one user.
type person struct {
	User string `arg:"" help:"The user's email or id."`
}

// on logs in, finds the user, works and shows what became of them.
func (p person) on(e *Env, g *Globals, work func(c *sdk.Client, user string) (*sdk.AdminUser, error)) error {
	c, end, err := e.session(g)
	if err != nil {
		return err
	}
	defer end()
	user, err := anyone(e, c, p.User)
	if err != nil {
		return err
	}
	u, err := work(c, user)
	if err != nil || u == nil {
		return err
	}
	if g.Output == "json" {
		return printJSON(e.Stdout, u)
	}
	return printUsers(e, g, []sdk.AdminUser{*u})
}

type promoteCmd struct{ person }

func (cmd *promoteCmd) Run(e *Env, g *Globals) error {
	return cmd.on(e, g, func(c *sdk.Client, user string) (*sdk.AdminUser, error) { return c.SetUserAdmin(e.Context, user, true) })
}

type demoteCmd struct{ person }

func (cmd *demoteCmd) Run(e *Env, g *Globals) error {
	return cmd.on(e, g, func(c *sdk.Client, user string) (*sdk.AdminUser, error) {
		return c.SetUserAdmin(e.Context, user, false)
	})
}

type disableCmd struct{ person }

func (cmd *disableCmd) Run(e *Env, g *Globals) error {
	return cmd.on(e, g, func(c *sdk.Client, user string) (*sdk.AdminUser, error) {
		return c.SetUserActive(e.Context, user, false)
	})
}

type enableCmd struct{ person }

func (cmd *enableCmd) Run(e *Env, g *Globals) error {
	return cmd.on(e, g, func(c *sdk.Client, user string) (*sdk.AdminUser, error) {
		return c.SetUserActive(e.Context, user, true)
	})
}

type resetLinkCmd struct{ person }

func (cmd *resetLinkCmd) Run(e *Env, g *Globals) error {
	return cmd.on(e, g, func(c *sdk.Client, user string) (*sdk.AdminUser, error) {
		link, err := c.CreateResetLink(e.Context, user)
		switch {
		case err != nil:
			return nil, err
		case g.Output == "json":
			return nil, printJSON(e.Stdout, link)
		}
		fmt.Fprintf(e.Stderr, "Whoever has this link sets the password, once, within %s:\n", strings.TrimPrefix(age(link.ExpiresAt), "in "))
		fmt.Fprintln(e.Stdout, clean(link.URL))
		return nil, nil
	})
}

type teamsCmd struct {
	Search string `arg:"" optional:"" help:"Part of a name or slug."`
	Limit  int    `help:"At most so many." placeholder:"N"`
}

func (cmd *teamsCmd) Run(e *Env, g *Globals) error {
	c, end, err := e.session(g)
	if err != nil {
		return err
	}
	defer end()
	list, err := collect(c.AllTeams(e.Context, cmd.Search), cmd.Limit)
	if err != nil {
		return err
	}
	return printTeams(e, g, list)
}

func printTeams(e *Env, g *Globals, list []sdk.AdminTeam) error {
	return printList(e, g, list, "No teams.", []string{"NAME", "SLUG", "OWNER", "MEMBERS", "SANDBOXES", "OWN HOSTS", "AGE", "DELETED", "ID"}, func(t sdk.AdminTeam) []string {
		return []string{t.Name, t.Slug, t.Owner, strconv.Itoa(t.Members), strconv.Itoa(t.Sandboxes), yes(t.IsByoc), age(t.CreatedAt), when(t.DeletedAt), t.ID}
	})
}

// someTeam is the argument of commands on any team.
type someTeam struct {
	Team string `arg:"" help:"Its id, slug or name."`
}

func (s someTeam) on(e *Env, g *Globals, work func(c *sdk.Client, team string) error) error {
	c, end, err := e.session(g)
	if err != nil {
		return err
	}
	defer end()
	team, err := anyTeam(e, c, s.Team)
	if err != nil {
		return err
	}
	return work(c, team)
}

type byocCmd struct {
	someTeam
	Switch string `arg:"" enum:"on,off" help:"${enum}."`
}

func (cmd *byocCmd) Run(e *Env, g *Globals) error {
	return cmd.on(e, g, func(c *sdk.Client, team string) error {
		t, err := c.SetBYOC(e.Context, team, cmd.Switch == "on")
		switch {
		case err != nil:
			return err
		case g.Output == "json":
			return printJSON(e.Stdout, t)
		}
		return printTeams(e, g, []sdk.AdminTeam{*t})
	})
}

type limitsCmd struct{ someTeam }

func (cmd *limitsCmd) Run(e *Env, g *Globals) error {
	return cmd.on(e, g, func(c *sdk.Client, team string) error {
		l, err := c.TeamLimits(e.Context, team)
		if err != nil {
			return err
		}
		return printLimits(e, g, l)
	})
}

type setLimitsCmd struct {
	someTeam
	Sandboxes *int     `help:"Sandboxes that have not ended." placeholder:"N"`
	VCPUs     *float64 `name:"vcpus" help:"Their vCPUs." placeholder:"N"`
	MemoryMB  *int64   `name:"memory-mb" help:"Their memory." placeholder:"MB"`
	DiskMB    *int64   `name:"disk-mb" help:"Their disks." placeholder:"MB"`
	StoredMB  *int64   `name:"stored-mb" help:"Snapshots, paused sandboxes and images." placeholder:"MB"`
	APIKeys   *int     `name:"api-keys" help:"API keys that work." placeholder:"N"`
	Hosts     *int     `help:"Hosts of its own." placeholder:"N"`
	Templates *int     `help:"Templates of its own." placeholder:"N"`
	Defaults  bool     `help:"What is not named becomes the default again; needed when some is not."`
}

// Run replaces all limits at once, as the API does.
func (cmd *setLimitsCmd) Run(e *Env, g *Globals) error {
	var to sdk.TeamLimits
	whole := set(cmd.Sandboxes, to.Sandboxes.SetTo)
	whole = set(cmd.VCPUs, to.Vcpus.SetTo) && whole
	whole = set(cmd.MemoryMB, to.MemoryMB.SetTo) && whole
	whole = set(cmd.DiskMB, to.DiskMB.SetTo) && whole
	whole = set(cmd.StoredMB, to.StoredMB.SetTo) && whole
	whole = set(cmd.APIKeys, to.APIKeys.SetTo) && whole
	whole = set(cmd.Hosts, to.Hosts.SetTo) && whole
	whole = set(cmd.Templates, to.Templates.SetTo) && whole
	if !whole && !cmd.Defaults {
		return &usageError{"limits are set all at once: name all eight, or add --defaults so that the others become the default"}
	}
	return cmd.on(e, g, func(c *sdk.Client, team string) error {
		l, err := c.SetTeamLimits(e.Context, team, to)
		if err != nil {
			return err
		}
		return printLimits(e, g, l)
	})
}

func set[T any](v *T, to func(T)) bool {
	if v != nil {
		to(*v)
	}
	return v != nil
}
