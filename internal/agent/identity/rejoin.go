package identity

import (
	"context"
	"errors"
	"path/filepath"
	"time"
)

// rejoinLook is how often a running agent looks for an offer.
const rejoinLook = time.Second

// ErrAnotherHost ends an agent that registered, while it ran, as another host
// than it was: everything it holds is the former one's. It goes on from the
// start.
var ErrAnotherHost = errors.New("identity: the registration token made this machine another host; the agent starts anew")

// Offer is a registration token left for the agent on a machine, which takes it
// at its next start or, when it runs, at once.
type Offer struct {
	Token string `json:"registration_token"`
	Pin   string `json:"ca_sha256"`
}

// LeaveOffer puts an offer, in place of an older one, where the agent with the
// identity in dir finds it.
func LeaveOffer(dir string, o Offer) error { return store{dir: dir}.saveOffer(o) }

// Accepted reports whether the credentials in dir were got with a token, and
// whether the token is still on offer there.
func Accepted(dir, token string) (accepted, waiting bool, err error) {
	// The offer first: it is withdrawn once the credentials are there.
	s := store{dir: dir}
	o, ok, err := s.offer()
	if err != nil {
		return false, false, err
	}
	creds, _, err := s.load()
	return creds.TokenHash == hash(token), ok && o.Token == token, err
}

func (s store) offerPath() string { return filepath.Join(s.dir, "offer.json") }

func (s store) offer() (o Offer, ok bool, err error) {
	ok, err = read(s.offerPath(), &o)
	return o, ok, err
}

func (s store) saveOffer(o Offer) error { return write(s.offerPath(), o, func(Step) {}) }

// withdraw removes the offer of a token; a newer one stays.
func (s store) withdraw(token string) error {
	o, ok, err := s.offer()
	if err != nil || !ok || o.Token != token {
		return err
	}
	return s.remove(s.offerPath())
}

// Rejoin takes registration tokens that are offered while the agent runs, until
// ctx ends. A host whose credentials are refused comes back this way with its
// sandboxes where they are. One that the control plane refuses is dropped; for
// one it could not be asked about it is tried again.
func (c Contact) Rejoin(ctx context.Context, facts Facts) error {
	c = c.withDefaults()
	i, retry := c.Identity, c.backoff()
	for sleep(ctx, rejoinLook) {
		o, ok, err := i.store.offer()
		if err == nil && !ok {
			continue
		}
		was := i.HostID()
		if err == nil {
			err = i.register(ctx, facts, o)
		}
		switch {
		case err == nil && i.HostID() != was:
			return ErrAnotherHost
		case err == nil:
			retry.reset()
			i.cfg.Logger.Info("registered anew", "host_id", was.String())
			select { // it is out of service until its next heartbeat
			case i.rejoined <- struct{}{}:
			default:
			}
		case ctx.Err() == nil:
			i.cfg.Logger.Error("the offered registration token could not be used", "err", err)
			sleep(ctx, retry.next(err))
		}
	}
	return nil
}
