package web

import (
	"context"
	"sync"
	"time"

	"skerry.dev/skerry/internal/control/principal"
	"skerry.dev/skerry/internal/kernel/errs"
	"skerry.dev/skerry/internal/kernel/id"
	"skerry.dev/skerry/internal/kernel/logkey"
	"skerry.dev/skerry/internal/kernel/observe"
)

// recheckEvery is how long a stream may outlive its caller's session or key, at
// most, beside the time of one query.
const recheckEvery = 800 * time.Millisecond

var errRevoked = errs.Unauthenticated("access_ended",
	"The session or API key behind this stream has ended, or its team or role has changed. Connect again; log in first, or use another key, when that is refused.")

// openRequests are the requests on mounted routes that are being served, which
// may be streams of any length. Its zero value is empty.
type openRequests struct {
	mu       sync.Mutex
	sessions map[id.Session]map[*openRequest]struct{}
	keys     map[id.APIKey]map[*openRequest]struct{}
}

type openRequest struct {
	caller principal.Principal
	cancel context.CancelCauseFunc
}

// enter notes a request until leave is called. What anybody may see, and what
// hosts do, is not looked at again.
func (o *openRequests) enter(caller principal.Principal, cancel context.CancelCauseFunc) (leave func()) {
	r := &openRequest{caller, cancel}
	o.mu.Lock()
	defer o.mu.Unlock()
	switch caller.Kind {
	case principal.KindUser:
		return enter(o, &o.sessions, caller.SessionID, r)
	case principal.KindAPIKey:
		return enter(o, &o.keys, caller.APIKeyID, r)
	default:
		return func() {}
	}
}

func enter[K comparable](o *openRequests, in *map[K]map[*openRequest]struct{}, key K, r *openRequest) (leave func()) {
	if *in == nil {
		*in = map[K]map[*openRequest]struct{}{}
	}
	if (*in)[key] == nil {
		(*in)[key] = map[*openRequest]struct{}{}
	}
	(*in)[key][r] = struct{}{}
	return func() {
		o.mu.Lock()
		defer o.mu.Unlock()
		delete((*in)[key], r)
		if len((*in)[key]) == 0 {
			delete(*in, key)
		}
	}
}

func callers[K comparable](o *openRequests, in *map[K]map[*openRequest]struct{}) []K {
	o.mu.Lock()
	defer o.mu.Unlock()
	out := make([]K, 0, len(*in))
	for key := range *in {
		out = append(out, key)
	}
	return out
}

// end cuts the requests of those asked about that allow refuses.
func end[K comparable](o *openRequests, in *map[K]map[*openRequest]struct{}, asked []K, allow func(K, principal.Principal) bool) {
	o.mu.Lock()
	defer o.mu.Unlock()
	for _, key := range asked {
		for r := range (*in)[key] {
			if !allow(key, r.caller) {
				r.cancel(errRevoked)
			}
		}
	}
}

// Recheck ends what is being streamed to callers whose session or key has
// ended, or whose team or role is another by now, until ctx does: two queries for all of them together, and none while
// nothing is open. While the database cannot be asked, streams go on.
func (s *Server) Recheck(ctx context.Context) error {
	ticker := time.NewTicker(recheckEvery)
	defer ticker.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-ticker.C:
		}
		if err := observe.Round(ctx, "stream_recheck", s.recheck); err != nil && ctx.Err() == nil {
			s.log.WarnContext(ctx, "cannot look whether open streams are still allowed", logkey.Error, err)
		}
	}
}

func (s *Server) recheck(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, checkWithin)
	defer cancel()
	if sessions := callers(&s.open, &s.open.sessions); len(sessions) > 0 {
		living, err := s.users.LivingSessions(ctx, sessions)
		if err != nil {
			return err
		}
		end(&s.open, &s.open.sessions, sessions, func(session id.Session, caller principal.Principal) bool {
			standing, lives := living[session]
			return lives && standing == caller.Standing()
		})
	}
	if keys := callers(&s.open, &s.open.keys); len(keys) > 0 {
		living, err := s.keys.LivingKeys(ctx, keys)
		if err != nil {
			return err
		}
		lives := make(map[id.APIKey]bool, len(living))
		for _, key := range living {
			lives[key] = true
		}
		end(&s.open, &s.open.keys, keys, func(key id.APIKey, _ principal.Principal) bool { return lives[key] })
	}
	return nil
}
