package pg

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"skerry.dev/skerry/internal/kernel/errs"
)

// Beginner starts transactions: a pool, or a transaction for a savepoint.
type Beginner interface {
	Begin(ctx context.Context) (pgx.Tx, error)
}

// txAttempts bounds how often a transaction is run that lost to another one.
const txAttempts = 5

// InTx runs fn in one transaction and commits when it returns nil. A
// transaction that the database ended for the sake of another (serialization,
// deadlock) is run again from the start, a bounded number of times, so fn must
// keep nothing from a run that failed. Errors come back mapped by Map.
func InTx(ctx context.Context, db Beginner, fn func(ctx context.Context, tx pgx.Tx) error) error {
	for attempt := 1; ; attempt++ {
		err := once(ctx, db, fn)
		if err == nil {
			return nil
		}
		if !retryable(err) || attempt == txAttempts {
			return Map(err)
		}
		pause := time.NewTimer(time.Duration(attempt*attempt) * time.Duration(1+rand.IntN(10)) * time.Millisecond)
		select {
		case <-pause.C:
		case <-ctx.Done():
			pause.Stop()
			return Map(ctx.Err())
		}
	}
}

func once(ctx context.Context, db Beginner, fn func(ctx context.Context, tx pgx.Tx) error) (err error) {
	tx, err := db.Begin(ctx)
	if err != nil {
		return fmt.Errorf("begin: %w", err)
	}
	committed := false
	defer func() {
		if !committed {
			// The context may be over; pgx then closes the connection, which
			// rolls back just as well.
			_ = tx.Rollback(context.WithoutCancel(ctx))
		}
	}()
	if err := fn(ctx, tx); err != nil {
		return err
	}
	if err := tx.Commit(ctx); err != nil {
		return fmt.Errorf("commit: %w", err)
	}
	committed = true
	return nil
}

// SQLSTATEs that mean something to the rooms.
const (
	stateUniqueViolation      = "23505"
	stateForeignKeyViolation  = "23503"
	stateCheckViolation       = "23514"
	stateInvalidText          = "22P02"
	stateUntranslatable       = "22P05"
	stateBadEncoding          = "22021"
	stateSerializationFailure = "40001"
	stateDeadlock             = "40P01"
	stateLockNotAvailable     = "55P03"
	stateQueryCanceled        = "57014"
)

func retryable(err error) bool {
	switch state(err) {
	case stateSerializationFailure, stateDeadlock:
		return true
	}
	return false
}

func state(err error) string {
	var pgErr *pgconn.PgError
	if errors.As(err, &pgErr) {
		return pgErr.Code
	}
	return ""
}

// Violates returns the constraint that err broke, or "". A store compares it
// with the names it knows before it lets Map decide.
func Violates(err error) string {
	var pgErr *pgconn.PgError
	if errors.As(err, &pgErr) {
		switch pgErr.Code {
		case stateUniqueViolation, stateForeignKeyViolation, stateCheckViolation:
			return pgErr.ConstraintName
		}
	}
	return ""
}

// Map gives an error of the database its class, by SQLSTATE alone. Errors that
// are typed already, and nil, stay as they are.
func Map(err error) error {
	var typed *errs.Error
	if err == nil || errors.As(err, &typed) {
		return err
	}
	switch code := state(err); {
	case errors.Is(err, pgx.ErrNoRows):
		return errs.NotFound("not_found", "There is no such thing, or it is not yours.").Because(err)
	case code == stateUniqueViolation:
		return errs.Conflict("already_exists", "Something with this name or id exists already.").Because(err)
	case code == stateCheckViolation, code == stateInvalidText, code == stateUntranslatable, code == stateBadEncoding:
		return errs.Invalid("invalid_request", "A value is outside what may be stored.").Because(err)
	case retryable(err), code == stateLockNotAvailable:
		return errs.Unavailable("busy", "Others are changing the same thing. Try again.").After(time.Second).Because(err)
	case errors.Is(err, context.Canceled):
		return errs.New(errs.CodeCanceled, "canceled", "The request was canceled.").Because(err)
	case errors.Is(err, context.DeadlineExceeded), code == stateQueryCanceled:
		return unavailable(err)
	case code == "" && connectionLost(err), len(code) == 5 && (code[:2] == "08" || code[:2] == "53" || code[:2] == "57"):
		return unavailable(err)
	}
	return err
}

func unavailable(err error) error {
	return errs.Unavailable("database_unavailable", "The database cannot be reached or is overloaded. Try again.").After(time.Second).Because(err)
}

func connectionLost(err error) bool {
	var connect *pgconn.ConnectError
	return errors.As(err, &connect) || pgconn.SafeToRetry(err) || pgconn.Timeout(err)
}
