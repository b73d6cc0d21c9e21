// Package mail sends letters of plain text. It is a convenience, never a
// dependence: without a server everything that needs a link can be done by an
// admin who hands it over.
package mail

import (
	"context"
	"log/slog"
)

// Message is one letter to one person.
type Message struct {
	To      string // a bare address
	Subject string
	Text    string // UTF-8, lines ended by \n
}

// Mailer sends letters. Send returns nil when somebody took over the
// responsibility for the letter; otherwise nothing was sent, or it is not
// known, and repeating it may send it twice. It ends with ctx. Safe for
// concurrent use.
type Mailer interface {
	Send(ctx context.Context, m Message) error
}

// Log writes letters into the log instead of sending them, links and all: for
// those who try Skerry on their own machine.
type Log struct{ Logger *slog.Logger }

// Send implements Mailer.
func (l Log) Send(ctx context.Context, m Message) error {
	l.Logger.InfoContext(ctx, "mail", "to", m.To, "subject", m.Subject, "text", m.Text)
	return nil
}
