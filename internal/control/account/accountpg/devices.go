package accountpg

import (
	"context"
	"errors"
	"time"

	"github.com/jackc/pgx/v5"

	"skerry.dev/skerry/internal/control/account"
	"skerry.dev/skerry/internal/control/account/accountpg/sqlcgen"
	"skerry.dev/skerry/internal/control/audit"
	"skerry.dev/skerry/internal/control/audit/auditpg"
	"skerry.dev/skerry/internal/control/idempotency/idempotencypg"
	"skerry.dev/skerry/internal/kernel/id"
	"skerry.dev/skerry/internal/pg"
)

// CreateDeviceLogin implements account.Store.
func (s *Store) CreateDeviceLogin(ctx context.Context, d account.NewDeviceLogin, receipt func(time.Time) any) (time.Time, error) {
	var expires time.Time
	err := s.inTx(ctx, func(ctx context.Context, tx pgx.Tx) error {
		return idempotencypg.Once(ctx, tx, func() (_ any, err error) {
			expires, err = s.q.InsertDeviceLogin(ctx, tx, sqlcgen.InsertDeviceLoginParams{
				ID: d.ID, DeviceHash: d.DeviceHash, UserCode: d.UserCode, ClientName: d.ClientName, Ip: address(d.IP),
				LifetimeSeconds: account.DeviceLifetime.Seconds(),
			})
			if pg.Violates(err) == "device_logins_user_code_key" {
				err = account.ErrCodeTaken.Because(err)
			}
			return receipt(expires), err
		})
	})
	return expires, err
}

// PendingDeviceLogin implements account.Store.
func (s *Store) PendingDeviceLogin(ctx context.Context, userCode string) (account.DeviceLogin, bool, error) {
	row, err := s.q.PendingDeviceLogin(ctx, s.pool, userCode)
	if errors.Is(err, pgx.ErrNoRows) {
		return account.DeviceLogin{}, false, nil
	}
	if err != nil {
		return account.DeviceLogin{}, false, pg.Map(err)
	}
	d := account.DeviceLogin{UserCode: row.UserCode, ClientName: row.ClientName, CreatedAt: row.CreatedAt, ExpiresAt: row.ExpiresAt}
	if row.Ip != nil {
		d.IP = *row.Ip
	}
	return d, true, nil
}

// DecideDeviceLogin implements account.Store.
func (s *Store) DecideDeviceLogin(ctx context.Context, userCode string, user id.User, approve bool, entry func(string) audit.Entry) (bool, error) {
	found := false
	err := s.inTx(ctx, func(ctx context.Context, tx pgx.Tx) error {
		found = false
		var client string
		// Whoever disables the user waits, and then drops what was approved here.
		held, err := s.q.HoldUser(ctx, tx, user)
		if err != nil || held == 0 {
			return err
		}
		if approve {
			client, err = s.q.ApproveDeviceLogin(ctx, tx, sqlcgen.ApproveDeviceLoginParams{UserCode: userCode, UserID: user.UUID()})
		} else {
			client, err = s.q.DenyDeviceLogin(ctx, tx, userCode)
		}
		if errors.Is(err, pgx.ErrNoRows) {
			return nil
		}
		if err != nil {
			return err
		}
		found = true
		return auditpg.Append(ctx, tx, entry(client))
	})
	return found, err
}

// DeviceLoginOf implements account.Store.
func (s *Store) DeviceLoginOf(ctx context.Context, deviceHash []byte) (account.DeviceStanding, bool, error) {
	row, err := s.q.GetDeviceLogin(ctx, s.pool, deviceHash)
	if errors.Is(err, pgx.ErrNoRows) {
		return account.DeviceStanding{}, false, nil
	}
	if err != nil {
		return account.DeviceStanding{}, false, pg.Map(err)
	}
	standing := account.DeviceStanding{Denied: row.Denied, Approved: row.Approved && row.UserID != nil}
	if standing.Approved {
		standing.User = *row.UserID
	}
	return standing, true, nil
}

// SpendDeviceLogin implements account.Store.
func (s *Store) SpendDeviceLogin(ctx context.Context, deviceHash []byte, login account.Login) (bool, error) {
	var spent int64
	err := s.inTx(ctx, func(ctx context.Context, tx pgx.Tx) (err error) {
		if err := s.openSession(ctx, tx, login, "", ""); err != nil {
			return err
		}
		spent, err = s.q.SpendDeviceLogin(ctx, tx, sqlcgen.SpendDeviceLoginParams{
			DeviceHash: deviceHash, UserID: login.Session.User.UUID(), SessionID: login.Session.ID.UUID(),
		})
		if err != nil {
			return err
		}
		if spent == 0 {
			return account.ErrCredentialsMoved // and the session is undone
		}
		return auditpg.Append(ctx, tx, login.Entry)
	})
	return err == nil, err
}
