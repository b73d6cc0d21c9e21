package cli

import (
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"

	"skerry.dev/skerry/internal/kernel/errs"
	"skerry.dev/skerry/sdk"
)

// Exit codes, as promised in the package's comment.
const (
	exitFailed      = 1
	ExitUsage       = 2
	exitNotAllowed  = 3
	exitNotFound    = 4
	exitConflict    = 5
	exitUnavailable = 6
)

// ExitError ends the program with a code and without a word: the command inside
// has said what there was to say.
type ExitError struct{ Code int }

func (e *ExitError) Error() string { return fmt.Sprintf("exit code %d", e.Code) }

// usageError is a command line that parses and makes no sense.
type usageError struct{ message string }

func (e *usageError) Error() string { return e.message }

// Report prints what went wrong and returns the exit code for it.
func Report(w io.Writer, err error) int {
	if err == nil {
		return 0
	}
	var exit *ExitError
	if errors.As(err, &exit) {
		return exit.Code
	}
	var refused *sdk.Error
	if errors.As(err, &refused) {
		fmt.Fprintf(w, "skerry: %s\n", clean(refused.Message))
		if refused.RequestID != "" {
			fmt.Fprintf(w, "        (%s, request %s)\n", clean(refused.Code), clean(refused.RequestID))
		} else {
			fmt.Fprintf(w, "        (%s)\n", clean(refused.Code))
		}
		return codeOf(refused)
	}
	text := err.Error()
	var typed *errs.Error
	if errors.As(err, &typed) && typed.Code != errs.CodeInternal {
		text = typed.Message
	}
	fmt.Fprintf(w, "skerry: %s\n", cleanLines(text))
	var usage *usageError
	var unreachable *sdk.UnreachableError
	var over *endedError
	switch {
	case errors.As(err, &usage):
		return ExitUsage
	case errors.As(err, &unreachable):
		fmt.Fprintln(w, "        Is the server running, and is its URL right (--url, SKERRY_URL)?")
		return exitUnavailable
	case errors.Is(err, errNoCredentials), errors.As(err, &over):
		return exitNotAllowed
	}
	return exitFailed
}

func codeOf(e *sdk.Error) int {
	switch e.Status {
	case http.StatusUnauthorized, http.StatusForbidden:
		return exitNotAllowed
	case http.StatusNotFound:
		return exitNotFound
	case http.StatusConflict, http.StatusPreconditionFailed:
		return exitConflict
	case http.StatusTooManyRequests, http.StatusBadGateway, http.StatusServiceUnavailable, http.StatusGatewayTimeout:
		return exitUnavailable
	}
	return exitFailed
}

// clean takes control characters, line breaks included, out of a text that
// somebody else wrote.
func clean(s string) string {
	return strings.Map(func(r rune) rune {
		if r < ' ' || r >= 0x7f && r < 0xa0 || r == '\u202e' || r == '\u2066' || r == '\u2067' {
			return ' '
		}
		return r
	}, s)
}

func cleanLines(s string) string {
	lines := strings.Split(s, "\n")
	for i, l := range lines {
		lines[i] = clean(l)
	}
	return strings.Join(lines, "\n        ")
}
