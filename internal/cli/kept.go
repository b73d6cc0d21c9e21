package cli

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"skerry.dev/skerry/sdk"
)

// kept is a login as it lies in the config file.
type kept struct {
	URL       string    `json:"url"`
	Email     string    `json:"email"`
	Token     string    `json:"token"`
	ExpiresAt time.Time `json:"expires_at"` // of the token
	Refresh   string    `json:"refresh"`
}

const (
	// margin is how long before its end a token is replaced.
	margin = time.Minute
	// patience bounds a refresh, for others wait for it.
	patience = 30 * time.Second
)

func (k kept) fresh() bool { return k.Token != "" && time.Until(k.ExpiresAt) > margin }

// goesOn is k after the server answered with a session.
func (k kept) goesOn(l *sdk.Login) kept {
	k.Token, k.ExpiresAt = l.Token, l.ExpiresAt
	if l.Refresh != "" {
		k.Refresh = l.Refresh
	}
	return k
}

// kept reads the login that was kept; the zero value when there is none.
func (e *Env) kept() (kept, error) {
	raw, err := os.ReadFile(e.ConfigFile)
	if errors.Is(err, fs.ErrNotExist) {
		return kept{}, nil
	}
	if err != nil {
		return kept{}, err
	}
	var k kept
	if err := json.Unmarshal(raw, &k); err != nil {
		return kept{}, fmt.Errorf("%s is damaged: remove it and run `skerry login`: %w", e.ConfigFile, err)
	}
	return k, nil
}

// keep writes a login, whole or not at all and for the owner alone; a zero one
// removes the file. Call it inside alone.
func (e *Env) keep(k kept) error {
	if k == (kept{}) {
		if err := os.Remove(e.ConfigFile); !errors.Is(err, fs.ErrNotExist) {
			return err
		}
		return nil
	}
	raw, err := json.MarshalIndent(k, "", "  ")
	if err != nil {
		return err
	}
	// An old refresh token that came back after a power cut would end the session.
	file, err := os.OpenFile(e.ConfigFile+".new", os.O_CREATE|os.O_TRUNC|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	_, err = file.Write(append(raw, '\n'))
	if err = errors.Join(err, file.Chmod(0o600), file.Sync(), file.Close()); err != nil {
		return err
	}
	return os.Rename(file.Name(), e.ConfigFile)
}

// alone runs work while no other process reads and writes the kept login.
func (e *Env) alone(work func() error) error {
	if err := os.MkdirAll(filepath.Dir(e.ConfigFile), 0o700); err != nil {
		return err
	}
	lock, err := os.OpenFile(e.ConfigFile+".lock", os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return err
	}
	defer lock.Close() // and unlock
	for {
		if err = unix.Flock(int(lock.Fd()), unix.LOCK_EX); !errors.Is(err, unix.EINTR) {
			break
		}
	}
	if err != nil {
		return fmt.Errorf("lock %s: %w", lock.Name(), err)
	}
	return work()
}

// keeper hands out the token of the kept login and goes on with it in time.
type keeper struct {
	e   *Env
	url string

	mu  sync.Mutex
	now kept
}

// keptClient acts with the login that was kept for a server.
func (e *Env) keptClient(url string) (*sdk.Client, error) {
	k := &keeper{e: e, url: url}
	return sdk.New(url, e.options(sdk.WithTokenSource(k.token))...)
}

func (k *keeper) token(ctx context.Context) (string, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.now.fresh() {
		return k.now.Token, nil
	}
	err := k.e.alone(func() error {
		known, err := k.e.kept()
		if err != nil {
			return err
		}
		if known.URL != k.url || known.Refresh == "" {
			return errNoCredentials // logged out meanwhile
		}
		if known.fresh() {
			k.now = known
			return nil
		}
		known, err = k.e.refresh(ctx, known)
		if sdk.Is(err, "invalid_refresh_token") {
			// It will never work again; what else is known for the server may.
			return errors.Join(&endedError{known.URL, known.Email}, k.e.keep(kept{}))
		}
		if err != nil {
			return err
		}
		k.now = known
		return k.e.keep(known)
	})
	return k.now.Token, err
}

func (e *Env) refresh(ctx context.Context, k kept) (kept, error) {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	anonymous, err := sdk.New(k.URL, e.options()...)
	if err != nil {
		return k, err
	}
	login, err := anonymous.Refresh(ctx, k.Refresh)
	if err != nil {
		return k, err
	}
	return k.goesOn(login), nil
}

// end ends a kept session at its server; one that has ended already is fine.
func (e *Env) end(k kept) error {
	if !k.fresh() {
		var err error
		if k, err = e.refresh(e.Context, k); err != nil {
			return unlessOver(err)
		}
	}
	client, err := sdk.New(k.URL, e.options(sdk.WithToken(k.Token))...)
	if err != nil {
		return err
	}
	return unlessOver(client.Logout(e.Context))
}

func unlessOver(err error) error {
	var refused *sdk.Error
	if errors.As(err, &refused) && refused.Status == 401 {
		return nil
	}
	return err
}

// endedError is a kept login that the server does not know any more.
type endedError struct{ url, email string }

func (e *endedError) Error() string {
	return fmt.Sprintf("your login at %s as %s has ended: run `skerry login` again", e.url, e.email)
}
