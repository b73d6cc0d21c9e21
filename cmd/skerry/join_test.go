package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	agentapp "skerry.dev/skerry/internal/agent/app"
	"skerry.dev/skerry/internal/agent/app/apptest"
	"skerry.dev/skerry/internal/agent/identity"
	"skerry.dev/skerry/internal/agent/identity/identitytest"
	"skerry.dev/skerry/internal/agent/setup"
	"skerry.dev/skerry/internal/cli"
	"skerry.dev/skerry/internal/doctor"
	"skerry.dev/skerry/internal/testkit"
	"skerry.dev/skerry/internal/up"
)

// joining is a machine about to join, and the control plane it joins.
type joining struct {
	t       *testing.T
	control *identitytest.Control
	cmd     joinCmd
	data    string
	machine *apptest.Machine
	out     bytes.Buffer
}

func newJoining(t *testing.T) *joining {
	t.Helper()
	ca := identitytest.NewCA(t)
	j := &joining{t: t, control: identitytest.NewControl(t, ca, identity.ControlURI), data: t.TempDir(), machine: apptest.NewMachine()}
	j.cmd = joinCmd{
		Server: j.control.URL, CASHA256: ca.Pin(), RegistrationToken: j.control.Token, Listen: "127.0.0.1:0",
		Settings: filepath.Join(t.TempDir(), "skerry", "agent.env"), Force: true,
		programs: programs{Runsc: "/nonexistent/runsc", Guest: "/nonexistent/guest"},
	}
	return j
}

func (j *joining) join(systemd setup.Systemd) error {
	j.t.Helper()
	ctx, cancel := context.WithTimeout(j.t.Context(), time.Minute)
	defer cancel()
	cmd := j.cmd
	return cmd.join(ctx, &cli.Env{Context: ctx, Stdout: &j.out, Stderr: io.Discard}, j.data, systemd)
}

// agent runs one as the settings say, until it is stopped or the test ends; it
// returns when the agent listens.
func (j *joining) agent() (stop func()) {
	j.t.Helper()
	opts := j.machine.Options()
	ready := make(chan struct{})
	opts.Ready = func(net.Addr) { close(ready) }
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() {
		done <- agentapp.RunWith(ctx, agentapp.Config{
			DataDir: up.AgentDir(j.data), Listen: j.cmd.Listen, ControlURL: j.cmd.Server, CASHA256: j.cmd.CASHA256, Heartbeat: 20 * time.Millisecond,
		}, opts)
	}()
	stop = sync.OnceFunc(func() {
		cancel()
		if err := <-done; err != nil {
			j.t.Error(err)
		}
	})
	j.t.Cleanup(stop)
	select {
	case <-ready:
	case err := <-done:
		done <- nil
		j.t.Fatalf("the agent ended with %v", err)
	case <-time.After(time.Minute):
		j.t.Fatal("the agent does not start")
	}
	return stop
}

func TestH1_JoinLeavesAllTheAgentNeeds(t *testing.T) {
	j := newJoining(t)
	if err := j.join(setup.Systemd{Booted: "/nonexistent"}); err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(j.out.String(), "skerry agent") {
		t.Errorf("without systemd it says %q", j.out.String())
	}
	info, err := os.Stat(j.cmd.Settings)
	if err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("the settings: %v, %v", info, err)
	}
	settings, _ := os.ReadFile(j.cmd.Settings)
	if strings.Contains(string(settings), j.cmd.RegistrationToken) || !strings.Contains(string(settings), "SKERRY_SERVER="+j.control.URL) {
		t.Errorf("the settings say %s", settings)
	}
	j.agent()
	if host, err := agentapp.HostID(up.AgentDir(j.data)); err != nil || host != j.control.HostID.String() {
		t.Errorf("joined as %q, %v", host, err)
	}
}

func TestHI03_JoiningAgainHandsTheRunningAgentItsToken(t *testing.T) {
	j := newJoining(t)
	if err := j.join(setup.Systemd{Booted: "/nonexistent"}); err != nil {
		t.Fatal(err)
	}
	j.agent()
	j.cmd.RegistrationToken = "spent"
	if err := j.join(setup.Systemd{Booted: "/nonexistent"}); !errors.Is(err, setup.ErrRefused) {
		t.Errorf("with a spent token: %v", err)
	}
	j.control.Lock()
	j.control.Token, j.control.JWT, j.control.Revoked = "new", "over", true
	beats := len(j.control.Heartbeats)
	j.control.Unlock()
	j.cmd.RegistrationToken = "new"
	if err := j.join(setup.Systemd{Booted: "/nonexistent"}); err != nil {
		t.Fatal(err)
	}
	testkit.Eventually(t, 30*time.Second, "heartbeats", func() bool {
		j.control.Lock()
		defer j.control.Unlock()
		return len(j.control.Heartbeats) > beats
	})
}

func TestH1_JoinDoesNotTakeAHostFromAnotherInstallation(t *testing.T) {
	j := newJoining(t)
	if err := j.join(setup.Systemd{Booted: "/nonexistent"}); err != nil {
		t.Fatal(err)
	}
	stop := j.agent()
	dir := up.AgentDir(j.data)
	state := filepath.Join(dir, "states", "a-sandbox's")
	if err := os.MkdirAll(state, 0o700); err != nil {
		t.Fatal(err)
	}
	ca := identitytest.NewCA(t)
	there := identitytest.NewControl(t, ca, identity.ControlURI)
	former, settings := j.control, j.cmd.Settings
	was, err := os.ReadFile(settings)
	if err != nil {
		t.Fatal(err)
	}
	j.control, j.cmd.Server, j.cmd.CASHA256, j.cmd.RegistrationToken = there, there.URL, ca.Pin(), there.Token
	refused := func(what, word string) {
		t.Helper()
		err := j.join(setup.Systemd{Booted: "/nonexistent"})
		if err == nil || !strings.Contains(err.Error(), word) {
			t.Errorf("%s: %v, want a word of %q", what, err, word)
		}
		now, err := os.ReadFile(settings)
		if err != nil || !bytes.Equal(now, was) {
			t.Errorf("%s: the settings changed: %s, %v", what, now, err)
		}
		if host, err := agentapp.HostID(dir); err != nil || host != former.HostID.String() {
			t.Errorf("%s: this is host %q, %v", what, host, err)
		}
	}
	refused("while its agent runs", "stop it")
	stop()
	j.cmd.Force = false
	if err := j.cmd.leave(t.Context(), dir, setup.Systemd{Booted: "/nonexistent"}); err == nil || !strings.Contains(err.Error(), "--force") || !strings.Contains(err.Error(), "1 sandboxes") {
		t.Errorf("with a saved state: %v", err)
	}
	if host, err := agentapp.HostID(dir); err != nil || host != former.HostID.String() {
		t.Errorf("this is host %q, %v", host, err)
	}
	j.cmd.Force = true
	if err := j.join(setup.Systemd{Booted: "/nonexistent"}); err != nil {
		t.Fatal(err)
	}
	j.agent()
	if host, err := agentapp.HostID(dir); err != nil || host != there.HostID.String() {
		t.Errorf("joined as %q, %v", host, err)
	}
	if _, err := os.Stat(state); err != nil {
		t.Errorf("joining removed what was there: %v", err)
	}
}

// The unit does not start an agent again that ended with this code.
func TestHI03_AnAgentThatNeedsATokenEndsWithItsOwnCode(t *testing.T) {
	unit, err := os.ReadFile("../../deploy/systemd/skerry-agent.service")
	if err != nil {
		t.Fatal(err)
	}
	var said bytes.Buffer
	e := &cli.Env{Stderr: &said}
	var exit *cli.ExitError
	if err := ended(e, fmt.Errorf("%w: it is void", identity.ErrToken)); !errors.As(err, &exit) ||
		!strings.Contains(string(unit), fmt.Sprintf("RestartPreventExitStatus=0 %d\n", exit.Code)) || !strings.Contains(said.String(), "registration token") {
		t.Errorf("%v, %q", err, said.String())
	}
	if err := ended(e, errors.New("another")); errors.As(err, &exit) {
		t.Errorf("another error: %v", err)
	}
}

func TestH1_JoinHasSystemdRunTheAgent(t *testing.T) {
	j := newJoining(t)
	dir := t.TempDir()
	calls := filepath.Join(dir, "calls")
	systemctl := filepath.Join(dir, "systemctl")
	if err := os.WriteFile(systemctl, []byte("#!/bin/sh\necho \"$@\" >>"+calls+"\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	joined := make(chan error, 1)
	go func() { joined <- j.join(setup.Systemd{Booted: dir, Systemctl: systemctl}) }()
	const want = "cat skerry-agent.service\nenable skerry-agent.service\nrestart skerry-agent.service\n"
	testkit.Eventually(t, 30*time.Second, "the calls", func() bool {
		raw, _ := os.ReadFile(calls)
		return string(raw) == want
	})
	j.agent()
	if err := <-joined; err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(j.out.String(), j.control.HostID.String()) {
		t.Errorf("it says %q", j.out.String())
	}
}

func TestH1_NothingChangesWhereSomethingIsMissing(t *testing.T) {
	for name, spoil := range map[string]func(*joining){
		"an unsound machine": func(j *joining) { j.cmd.Force = false },
		"plain http":         func(j *joining) { j.cmd.Server = "http://192.0.2.1:7071" },
		"a short pin":        func(j *joining) { j.cmd.CASHA256 = "abc" },
		"another's pin":      func(j *joining) { j.cmd.Force, j.cmd.CASHA256 = false, identitytest.NewCA(t).Pin() },
		"no address":         func(j *joining) { j.cmd.Listen = "nowhere" },
	} {
		j := newJoining(t)
		spoil(j)
		if err := j.join(setup.Systemd{Booted: "/nonexistent"}); err == nil {
			t.Errorf("%s: joined", name)
		}
		if _, err := os.Stat(j.cmd.Settings); err == nil {
			t.Errorf("%s: settings were written", name)
		}
		if _, err := os.Stat(up.AgentDir(j.data)); err == nil {
			t.Errorf("%s: a token was left", name)
		}
	}
}

// TestO4_DoctorExitsWithOneAndSaysWhy on a machine where the programs are
// missing.
func TestO4_DoctorExitsWithOneAndSaysWhy(t *testing.T) {
	var out bytes.Buffer
	cmd := doctorCmd{HostListen: "127.0.0.1:0", JSON: true, programs: programs{Runsc: "/nonexistent/runsc", Guest: "/nonexistent/guest"}}
	err := cmd.Run(&cli.Env{Context: t.Context(), Stdout: &out}, &cli.Globals{}, &program{Data: t.TempDir()})
	var exit *cli.ExitError
	if !errors.As(err, &exit) || exit.Code != 1 {
		t.Errorf("it ends with %v", err)
	}
	var r doctor.Report
	if err := json.Unmarshal(out.Bytes(), &r); err != nil || r.OK {
		t.Fatalf("%v: %s", err, out.String())
	}
	faults := 0
	for _, f := range r.Findings {
		if f.State == doctor.Fail && strings.Contains(f.Message, "/nonexistent") && f.Remedy != "" {
			faults++
		}
	}
	if faults != 2 {
		t.Errorf("%d faults, want runsc and the guest: %s", faults, out.String())
	}
}
