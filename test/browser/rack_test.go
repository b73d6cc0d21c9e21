package browser

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"
)

// rack is another machine, as far as an agent sees: a network, mounts and a data
// directory of its own. It and the server reach each other at the addresses that
// they have for themselves.
type rack struct {
	*stage
	data  string
	agent *exec.Cmd
	said  tail
	ended chan error
}

// join runs the command that a page gave somebody, on a new machine, and starts
// the agent there as the command says. There is one machine at a time.
func (w *world) join(ctx context.Context, args json.RawMessage) (any, error) {
	var command string
	if err := json.Unmarshal(args, &command); err != nil {
		return nil, err
	}
	words := strings.Fields(command)
	if w.rack != nil || len(words) < 4 || words[0] != "skerry" || words[1] != "join" {
		return nil, fmt.Errorf("no command to join: %q", command)
	}
	server := ""
	for i, word := range words[:len(words)-1] {
		if word == "--server" {
			server = strings.TrimPrefix(words[i+1], "https://")
		}
	}
	r, err := newRack(server)
	if err != nil {
		return nil, err
	}
	w.rack = r
	own, err := freeAddress()
	if err != nil {
		return nil, err
	}
	if err := r.admit(own); err != nil {
		return nil, err
	}
	settings := filepath.Join(r.data, "agent.env")
	program := filepath.Join(w.Root, "bin", "skerry")
	join := exec.CommandContext(ctx, program, append(words[1:], "--force", "--settings", settings, "--host-listen", own)...)
	join.Env = append(os.Environ(), "SKERRY_DATA="+r.data)
	var out bytes.Buffer
	join.Stdout, join.Stderr = &out, &out
	if err := r.start(join); err != nil {
		return nil, err
	}
	if err := join.Wait(); err != nil {
		return nil, fmt.Errorf("%s: %w\n%s", command, err, &out)
	}
	r.agent = exec.Command("bash", "-c", `set -a; . "$0"; set +a; exec "$1" agent`, settings, program)
	r.agent.Env = append(os.Environ(), "SKERRY_WARM_SLOTS=1", "SKERRY_AGENT_WARM=0", "SKERRY_DNS=192.0.2.53")
	r.agent.Stdout, r.agent.Stderr = &r.said, &r.said
	r.agent.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
	r.agent.WaitDelay = 5 * time.Second
	if err := r.start(r.agent); err != nil {
		return nil, err
	}
	go func() { r.ended <- r.agent.Wait() }()
	return nil, nil
}

// left waits until the agent has ended by itself, as after its host was deleted.
func (w *world) left(ctx context.Context, _ json.RawMessage) (any, error) {
	if w.rack == nil || w.rack.agent == nil {
		return nil, errors.New("no agent was started")
	}
	select {
	case err := <-w.rack.ended:
		w.rack.ended <- err
		if err != nil {
			return nil, fmt.Errorf("the agent: %w\n%s", err, &w.rack.said)
		}
		return nil, w.clear()
	case <-time.After(time.Minute):
		return nil, fmt.Errorf("the agent goes on\n%s", &w.rack.said)
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
}

// clear takes the machine away, whatever state it is in.
func (w *world) clear() error {
	r := w.rack
	if r == nil {
		return nil
	}
	w.rack = nil
	if r.agent != nil && r.agent.Process != nil {
		_ = syscall.Kill(-r.agent.Process.Pid, syscall.SIGKILL) // it has ended, unless a test failed
		<-r.ended
	}
	down := exec.Command(filepath.Join(w.Root, "bin", "skerry"), "down", "--purge", "--yes")
	down.Env = append(os.Environ(), "SKERRY_DATA="+r.data)
	var out bytes.Buffer
	down.Stdout, down.Stderr = &out, &out
	err := r.start(down)
	if err == nil {
		err = down.Wait()
	}
	if err != nil {
		err = fmt.Errorf("purge the machine: %w\n%s", err, &out)
	}
	return errors.Join(err, r.close(), os.RemoveAll(r.data))
}

func newRack(server string) (*rack, error) {
	data, err := os.MkdirTemp("", "skerry-rack-")
	if err != nil {
		return nil, err
	}
	if err := os.Chmod(data, 0o711); err != nil {
		return nil, err
	}
	s, err := newStage(ownMounts, server)
	if err != nil {
		return nil, errors.Join(err, os.RemoveAll(data))
	}
	return &rack{stage: s, data: data, ended: make(chan error, 1)}, nil
}

func freeAddress() (string, error) {
	l, err := (&net.ListenConfig{}).Listen(context.Background(), "tcp", "127.0.0.1:0")
	if err != nil {
		return "", err
	}
	return l.Addr().String(), l.Close()
}
