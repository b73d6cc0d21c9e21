package app

import (
	"context"

	"skerry.dev/skerry/internal/control/account"
	"skerry.dev/skerry/internal/control/account/accountpg"
	"skerry.dev/skerry/internal/control/keyring"
	"skerry.dev/skerry/internal/control/keyring/keyringpg"
	"skerry.dev/skerry/internal/kernel/clock"
	"skerry.dev/skerry/internal/pg"
)

// EnsureAdmin makes the first platform admin on a migrated database, beside or
// without a running server. It tells whether one was made.
func EnsureAdmin(ctx context.Context, databaseURL, secret, email, password string) (bool, error) {
	s, err := keyring.ParseSecret(secret)
	if err != nil {
		return false, err
	}
	pool, err := pg.Open(ctx, databaseURL)
	if err != nil {
		return false, err
	}
	defer pool.Close()
	keys, err := keyring.Load(ctx, keyringpg.New(pool), s, clock.System{})
	if err != nil {
		return false, err
	}
	accounts, err := account.NewService(ctx, accountpg.New(pool), keys, account.NewHasher(account.DefaultCost()), account.SignupClosed, clock.System{})
	if err != nil {
		return false, err
	}
	return accounts.EnsureFirstAdmin(ctx, email, password)
}
