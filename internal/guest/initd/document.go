// Package initd is PID 1 of a sandbox: it takes the one document the host gives
// it, sets up what the runtime left out, holds the daemon's port, keeps the
// serving daemon alive and reaps whatever loses its parents. It also knows how
// the sandbox's identity is written, since the daemon does that again after a
// fork.
package initd

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"

	"skerry.dev/skerry/internal/guest/guestapi"
)

// documentMax bounds what is read from the descriptor.
const documentMax = 8 << 20

// Document is what the serving daemon reads from its descriptor 0: never its
// environment or arguments, which others can see.
type Document struct {
	Boot guestapi.Boot `json:"boot"`
	// Init is the last configuration a daemon before this one was given.
	Init *guestapi.Init `json:"init,omitempty"`
	// System says that the machine is the daemon's: it may set the clock and the
	// host name and write below /etc.
	System bool `json:"system,omitempty"`
	// Restarts counts the daemons before this one.
	Restarts int `json:"restarts,omitempty"`

	// Listen is the address to listen on when no ListenerFD was passed; empty is
	// every address at the port of Boot.
	Listen string `json:"listen,omitempty"`
	// ListenerFD and ReportFD are descriptors PID 1 passed: the open listener,
	// and a pipe that takes each new Init as a line of JSON. 0 is none.
	ListenerFD int `json:"listener_fd,omitempty"`
	ReportFD   int `json:"report_fd,omitempty"`
	// FenceFD is the fence all commands run behind; 0 is none.
	FenceFD int `json:"fence_fd,omitempty"`

	// Passwd and Group name the account files; empty is those in /etc.
	Passwd string `json:"passwd,omitempty"`
	Group  string `json:"group,omitempty"`
}

// ReadBoot reads the host's document until end of file.
func ReadBoot(r io.Reader) (guestapi.Boot, error) {
	var b guestapi.Boot
	if err := read(r, &b); err != nil {
		return b, err
	}
	if b.InitSecret == "" {
		return b, errors.New("the start document has no init_secret")
	}
	return b, nil
}

// ReadDocument reads the serving daemon's document until end of file.
func ReadDocument(r io.Reader) (Document, error) {
	var d Document
	err := read(r, &d)
	return d, err
}

func read(r io.Reader, v any) error {
	data, err := io.ReadAll(io.LimitReader(r, documentMax))
	if err != nil {
		return fmt.Errorf("reading the start document: %w", err)
	}
	if err := json.Unmarshal(data, v); err != nil {
		// The text of the error could quote the document, which holds a secret.
		return errors.New("the start document is not valid JSON")
	}
	return nil
}

// Port returns where the daemon listens.
func Port(b guestapi.Boot) int {
	if b.Port == 0 {
		return guestapi.DefaultPort
	}
	return b.Port
}
