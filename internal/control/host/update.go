package host

import (
	"context"
	"strings"
	"unicode/utf8"

	"skerry.dev/skerry/internal/control/audit"
	"skerry.dev/skerry/internal/control/principal"
	"skerry.dev/skerry/internal/kernel/errs"
	"skerry.dev/skerry/internal/kernel/id"
)

// Update is what to change of a host; nil leaves it.
type Update struct {
	Name             *string
	Provider         *string
	AvailabilityZone *string
	Labels           map[string]string // all of them
}

// Validate checks the request.
func (u Update) Validate() error {
	check := CreateRequest{Type: TypeRegular, Labels: u.Labels}
	if u.Name != nil {
		if n := utf8.RuneCountInString(strings.TrimSpace(*u.Name)); n < 1 || n > maxName || !text(*u.Name, 4*maxName) {
			return errs.Field("name", "name must be 1 to 100 printable characters.")
		}
	}
	if u.Provider != nil {
		check.Provider = *u.Provider
	}
	if u.AvailabilityZone != nil {
		check.AvailabilityZone = *u.AvailabilityZone
	}
	return check.Validate()
}

func (u Update) fields() (out []string) {
	for _, f := range []struct {
		name string
		set  bool
	}{
		{"name", u.Name != nil},
		{"provider", u.Provider != nil},
		{"availability_zone", u.AvailabilityZone != nil},
		{"labels", u.Labels != nil},
	} {
		if f.set {
			out = append(out, f.name)
		}
	}
	return out
}

// Update changes what a host is called and where it is said to be. Nothing to
// change is no change.
func (s *Service) Update(ctx context.Context, by principal.Principal, host id.Host, u Update) (Host, error) {
	h, err := s.managed(ctx, by, host)
	if err != nil {
		return Host{}, err
	}
	if err := u.Validate(); err != nil {
		return Host{}, err
	}
	fields := u.fields()
	if len(fields) == 0 {
		return h, nil
	}
	if u.Name != nil {
		name := strings.TrimSpace(*u.Name)
		u.Name = &name
	}
	return s.store.Update(ctx, host, u, audit.By(by).HostUpdated(h.TeamID, host, fields...))
}

// managed reads a host that the caller may manage.
func (s *Service) managed(ctx context.Context, by principal.Principal, host id.Host) (Host, error) {
	h, err := s.Get(ctx, by, host)
	if err != nil {
		return Host{}, err
	}
	return h, mayManage(by, h.Type, h.TeamID)
}

// MayManage says whether the caller manages a host that it may see.
func (s *Service) MayManage(ctx context.Context, by principal.Principal, host id.Host) error {
	_, err := s.managed(ctx, by, host)
	return err
}
