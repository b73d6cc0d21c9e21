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

// EnsureAdmin makes sure, on a migrated database, that there is a platform admin
// with this address and password, beside or without a running server. It is
// also how a lost password is replaced.
func EnsureAdmin(ctx context.Context, databaseURL, secret, email, password string) error {
	s, err := keyring.ParseSecret(secret)
	if err != nil {
		return err
	}
	pool, err := pg.Open(ctx, databaseURL)
	if err != nil {
		return err
	}
	defer pool.Close()
	keys, err := keyring.Load(ctx, keyringpg.New(pool), s, clock.System{})
	if err != nil {
		return err
	}
	accounts, err := account.NewService(ctx, account.Config{
		Store: accountpg.New(pool), Signer: keys, Hasher: account.NewHasher(account.DefaultCost()), Signup: account.SignupClosed, Clock: clock.System{},
	})
	if err != nil {
		return err
	}
	return accounts.EnsureAdmin(ctx, email, password)
}
