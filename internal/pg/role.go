package pg

import (
	"context"
	"fmt"

	"github.com/jackc/pgx/v5"

	"skerry.dev/skerry/internal/kernel/errs"
)

// AppRole is the role that all servers act as, whoever their URL names: it owns
// nothing, and may not change what is written for good. It belongs to the whole
// PostgreSQL server and cannot log in; databases and migrations share it.
const AppRole = "skerry_app"

// roleAttempts bounds how often making the role is tried against others that
// do the same in their own databases.
const roleAttempts = 10

// SQLSTATEs that concurrent changes of roles end with.
const (
	stateDuplicateObject = "42710"
	stateUndefinedObject = "42704"
	stateInvalidValue    = "22023" // SET ROLE to one that does not exist
	stateNotAllowed      = "42501"
	stateInternal        = "XX000" // "tuple concurrently updated"
)

// ensureAppRole makes the role, and makes the user of the URL a member, where
// that is not so yet. Repeating it changes nothing; of many at once all succeed.
func ensureAppRole(ctx context.Context, config *pgx.ConnConfig) error {
	conn, err := pgx.ConnectConfig(ctx, config)
	if err != nil {
		return Map(fmt.Errorf("connect to the database: %w", err))
	}
	defer conn.Close(context.WithoutCancel(ctx))
	for attempt := 1; ; attempt++ {
		err = makeAppRole(ctx, conn)
		switch state(err) {
		case stateDuplicateObject, stateUniqueViolation, stateUndefinedObject, stateInvalidValue, stateInternal:
			// Another database's migration was at it in the same moment.
			if attempt < roleAttempts {
				continue
			}
		case stateNotAllowed:
			return noAppRole(config.User, err)
		}
		return Map(err)
	}
}

func makeAppRole(ctx context.Context, conn *pgx.Conn) error {
	var exists bool
	if err := conn.QueryRow(ctx, "SELECT EXISTS (SELECT FROM pg_roles WHERE rolname = $1)", AppRole).Scan(&exists); err != nil {
		return fmt.Errorf("look for the role %s: %w", AppRole, err)
	}
	if !exists {
		if _, err := conn.Exec(ctx, "CREATE ROLE "+AppRole+" NOLOGIN"); err != nil {
			return fmt.Errorf("create the role %s: %w", AppRole, err)
		}
	}
	err := setAppRole(ctx, conn)
	if state(err) == stateNotAllowed {
		if _, err := conn.Exec(ctx, "GRANT "+AppRole+" TO CURRENT_USER"); err != nil {
			return fmt.Errorf("become a member of the role %s: %w", AppRole, err)
		}
		err = setAppRole(ctx, conn)
	}
	return err
}

func setAppRole(ctx context.Context, conn *pgx.Conn) error {
	if _, err := conn.Exec(ctx, "SET ROLE "+AppRole); err != nil {
		return fmt.Errorf("act as the role %s: %w", AppRole, err)
	}
	return nil
}

// becomeApp lets a fresh connection act as AppRole until it ends.
func becomeApp(ctx context.Context, conn *pgx.Conn) error {
	err := setAppRole(ctx, conn)
	switch state(err) {
	case stateInvalidValue, stateUndefinedObject, stateNotAllowed:
		return noAppRole(conn.Config().User, err)
	}
	return err
}

func noAppRole(user string, cause error) error {
	name := pgx.Identifier{user}.Sanitize()
	return errs.FailedPrecondition("database_role_missing", fmt.Sprintf(
		"The database's user %s can neither act as the role %s nor make it. Let an administrator of PostgreSQL run: CREATE ROLE %s NOLOGIN; GRANT %s TO %s; "+
			"(leave the first out when the role exists), or give the user CREATEROLE. Then start again.",
		name, AppRole, AppRole, AppRole, name)).Because(cause)
}
