package identity

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"time"
)

const (
	maxAnswer   = 1 << 20
	callTimeout = 30 * time.Second

	// clockTolerance is how far this machine's clock may be from the control
	// plane's before it is said; certificates forgive as much.
	clockTolerance = 5 * time.Minute
)

// Refused is an answer of the control plane that is not a success.
type Refused struct {
	Status int
	Code   string // stable reason word, where there was one
	// RetryAfter is how long the control plane asks us to wait.
	RetryAfter time.Duration

	statement string // of the host's deletion, not verified
}

// Error implements error.
func (r *Refused) Error() string {
	if r.Code == "" {
		return fmt.Sprintf("identity: the control plane answered %d", r.Status)
	}
	return fmt.Sprintf("identity: the control plane answered %d (%s)", r.Status, r.Code)
}

// Unauthorized reports whether err is a refusal of our credentials.
func Unauthorized(err error) bool {
	var r *Refused
	return errors.As(err, &r) && (r.Status == http.StatusUnauthorized || r.Status == http.StatusForbidden)
}

// call posts in and reads the answer into out, which may be nil. With bearer it
// is made as this host; without, what in holds is the proof.
func (i *Identity) call(ctx context.Context, path string, bearer bool, in, out any) error {
	body, err := json.Marshal(in)
	if err != nil {
		return fmt.Errorf("identity: %w", err)
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, i.base.String()+path, bytes.NewReader(body))
	if err != nil {
		return fmt.Errorf("identity: %w", err)
	}
	req.Header.Set("Content-Type", "application/json")
	client := i.nameless
	if bearer {
		client = i.http
		m := i.current.Load()
		if m == nil {
			return errors.New("identity: not registered")
		}
		req.Header.Set("Authorization", "Bearer "+m.creds.HostJWT)
	}
	resp, err := client.Do(req)
	if err != nil {
		return fmt.Errorf("identity: %w", err)
	}
	defer resp.Body.Close()
	i.compareClocks(resp)
	raw, err := io.ReadAll(io.LimitReader(resp.Body, maxAnswer))
	if err != nil {
		return fmt.Errorf("identity: %s: %w", path, err)
	}
	if resp.StatusCode/100 != 2 {
		r := refusal(resp, raw)
		if r.Status == http.StatusGone {
			return i.gone(r)
		}
		return r
	}
	if out == nil {
		return nil
	}
	if err := json.Unmarshal(raw, out); err != nil {
		return fmt.Errorf("identity: %s: %w", path, err)
	}
	return nil
}

func refusal(resp *http.Response, raw []byte) *Refused {
	r := &Refused{Status: resp.StatusCode}
	var said struct {
		Error struct {
			Code    string `json:"code"`
			Details struct {
				Statement string `json:"statement"`
			} `json:"details"`
		} `json:"error"`
		Code string `json:"code"`
	}
	if json.Unmarshal(raw, &said) == nil {
		r.Code, r.statement = said.Error.Code, said.Error.Details.Statement
		if r.Code == "" {
			r.Code = said.Code
		}
	}
	if d, err := time.ParseDuration(resp.Header.Get("Retry-After") + "s"); err == nil && d > 0 && d <= time.Hour {
		r.RetryAfter = d
	}
	return r
}

// compareClocks tells, once, that the machine's clock is wrong. The control
// plane goes by its own; but certificates are judged here too.
func (i *Identity) compareClocks(resp *http.Response) {
	theirs, err := http.ParseTime(resp.Header.Get("Date"))
	if err != nil {
		return
	}
	ours := i.cfg.Clock.Now()
	wrong := ours.Sub(theirs).Abs() > clockTolerance
	if wrong == i.skewed.Swap(wrong) {
		return
	}
	if wrong {
		i.cfg.Logger.Error("this machine's clock is wrong: set it (timedatectl set-ntp true)", "clock", ours, "control_plane", theirs)
		return
	}
	i.cfg.Logger.Info("this machine's clock is right again")
}
