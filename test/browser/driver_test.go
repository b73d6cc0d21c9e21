package browser

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"syscall"
	"testing"
	"time"

	"skerry.dev/skerry/internal/control/oauth/oauthtest"
	"skerry.dev/skerry/internal/testkit"
)

// silence is how long a script may say nothing: its steps are short, and each
// wait in them is bounded.
func silence() time.Duration {
	return time.Duration(testkit.Scaled(15, 3)) * time.Minute
}

// driver is the Node process that has the browser and plays scripts in it. What
// it says are lines of JSON, and so is what it is told.
type driver struct {
	cmd    *exec.Cmd
	in     io.WriteCloser
	reader sync.WaitGroup
	stderr tail

	mu    sync.Mutex // also of what is written
	plays map[string]chan message
	over  bool
}

// message is one line: a step begins or ends, a script is over, something to be
// noted, or a question.
type message struct {
	Play  string          `json:"play"` // the script that says it
	Kind  string          `json:"kind"` // begin, end, log, ask
	Name  string          `json:"name,omitempty"`
	Error string          `json:"error,omitempty"`
	Args  json.RawMessage `json:"args,omitempty"`
}

var (
	driving sync.Mutex
	current *driver // none before it is needed, and after it died
)

// unread is how many lines of a script may wait for their test.
const unread = 1024

// play runs a script of this directory, beside others. Each of its steps is a
// subtest.
func (w *world) play(t *testing.T, script string) {
	t.Helper()
	d, err := w.driver()
	if err != nil {
		t.Fatal(err)
	}
	said := d.begin(script)
	defer d.forget(script)
	p := play{driver: d, name: script, said: said, answers: map[string]answer{
		"cut":      func(context.Context, json.RawMessage) (any, error) { w.stage.cut(false); return nil, nil },
		"down":     func(context.Context, json.RawMessage) (any, error) { w.stage.cut(true); return nil, nil },
		"up":       func(context.Context, json.RawMessage) (any, error) { w.stage.cut(false); return nil, nil },
		"fill":     w.fill,
		"identity": w.identity, "join": w.join, "left": w.left,
	}}
	if err := p.tell(map[string]any{"begin": true}); err != nil {
		t.Fatal(err)
	}
	defer func() {
		if p.dead {
			d.replace()
		}
	}()
	p.follow(t)
}

// identity says who is at the browser, as the provider knows it; or that they
// say no there.
func (w *world) identity(_ context.Context, args json.RawMessage) (any, error) {
	var who *oauthtest.Person
	if err := json.Unmarshal(args, &who); err != nil {
		return nil, err
	}
	if who == nil {
		w.issuer.Refuse()
	} else {
		w.issuer.LogIn(*who)
	}
	return w.issuer.URL, nil
}

// driver returns the one that runs, or begins one.
func (w *world) driver() (*driver, error) {
	driving.Lock()
	defer driving.Unlock()
	if current == nil {
		d, err := w.drive()
		if err != nil {
			return nil, err
		}
		current = d
	}
	return current, nil
}

// replace ends a driver that is of no use any more; the next test gets another.
func (d *driver) replace() {
	driving.Lock()
	defer driving.Unlock()
	if current == d {
		current = nil
		_ = d.close()
	}
}

// begin hears what a script says from here on.
func (d *driver) begin(script string) <-chan message {
	d.mu.Lock()
	defer d.mu.Unlock()
	said := make(chan message, unread)
	if d.over {
		close(said)
	} else {
		d.plays[script] = said
	}
	return said
}

func (d *driver) forget(script string) {
	d.mu.Lock()
	defer d.mu.Unlock()
	delete(d.plays, script)
}

// hear passes on what one script said. A test that does not read what its script
// says in masses loses it, and fails by that.
func (d *driver) hear(m message) {
	d.mu.Lock()
	defer d.mu.Unlock()
	select {
	case d.plays[m.Play] <- m:
	default:
	}
}

// end tells all who listen that nothing comes any more.
func (d *driver) end() {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.over = true
	for script, said := range d.plays {
		close(said)
		delete(d.plays, script)
	}
}

// answer is what a script may ask of the test.
type answer func(ctx context.Context, args json.RawMessage) (any, error)

// play is a script that runs.
type play struct {
	*driver
	name    string
	said    <-chan message
	answers map[string]answer
	dead    bool
}

// follow reads until what began before it has ended.
func (p *play) follow(t *testing.T) {
	for {
		m, err := p.next()
		if err != nil {
			p.dead = true
			t.Fatalf("the driver: %v\n%s", err, &p.stderr)
		}
		switch m.Kind {
		case "begin":
			ran := false
			t.Run(m.Name, func(t *testing.T) {
				ran = true
				p.follow(t)
			})
			if p.dead {
				t.FailNow()
			}
			if !ran { // left out by -run: it is played all the same
				p.follow(t)
			}
		case "end":
			if m.Error != "" {
				t.Error(m.Error)
			}
			return
		case "log":
			t.Log(m.Name)
		case "ask":
			p.answer(t, m)
		}
	}
}

func (p *play) answer(t *testing.T, m message) {
	reply := map[string]any{}
	if a, ok := p.answers[m.Name]; !ok {
		reply["error"] = "nobody answers to " + m.Name
	} else if result, err := a(t.Context(), m.Args); err != nil {
		reply["error"] = err.Error()
	} else {
		reply["answer"] = result
	}
	if err := p.tell(reply); err != nil {
		p.dead = true
		t.Fatal(err)
	}
}

func (p *play) next() (message, error) {
	limit := time.NewTimer(silence())
	defer limit.Stop()
	select {
	case m, ok := <-p.said:
		if !ok {
			return m, errors.New("it has ended")
		}
		return m, nil
	case <-limit.C:
		return message{}, fmt.Errorf("it said nothing for %s", silence())
	}
}

// drive starts Node and, in it, the browser.
func (w *world) drive() (*driver, error) {
	chromium, err := exec.LookPath("chromium")
	if err != nil {
		return nil, err
	}
	shots := os.Getenv("SKERRY_SCREENSHOTS")
	if shots == "" {
		shots = filepath.Join(w.Root, ".cache", "screenshots")
	}
	setup, err := json.Marshal(map[string]any{
		"url": w.URL, "admin": map[string]string{"email": w.email, "password": w.password},
		"chromium": chromium, "shots": shots, "long": testkit.Scaled(1, 0) == 1,
	})
	if err != nil {
		return nil, err
	}
	d := &driver{plays: map[string]chan message{}}
	d.cmd = exec.Command("node", "lib/driver.mjs", string(setup))
	d.cmd.Stderr = &d.stderr
	d.cmd.WaitDelay = 5 * time.Second
	d.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
	if d.in, err = d.cmd.StdinPipe(); err != nil {
		return nil, err
	}
	stdout, err := d.cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	if err := w.stage.start(d.cmd); err != nil {
		return nil, err
	}
	d.reader.Go(func() {
		defer d.end()
		lines := bufio.NewReader(stdout)
		for {
			line, err := lines.ReadBytes('\n')
			var m message
			if err != nil || json.Unmarshal(line, &m) != nil {
				return
			}
			d.hear(m)
		}
	})
	return d, nil
}

// tell says something to the script.
func (p *play) tell(what map[string]any) error {
	what["play"] = p.name
	line, err := json.Marshal(what)
	if err != nil {
		return err
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	_, err = p.in.Write(append(line, '\n'))
	return err
}

// close ends Node, and with it the browser.
func (d *driver) close() error {
	_ = d.in.Close() // it ends by that; where it does not, it is made to
	kill := time.AfterFunc(10*time.Second, func() { _ = syscall.Kill(-d.cmd.Process.Pid, syscall.SIGKILL) })
	defer kill.Stop()
	d.reader.Wait()
	return d.cmd.Wait()
}

// tail keeps the end of what is written to it.
type tail struct {
	mu  sync.Mutex
	end []byte
}

const tailLength = 8 << 10

func (t *tail) Write(p []byte) (int, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.end = append(t.end, p...)
	if n := len(t.end) - tailLength; n > 0 {
		t.end = bytes.Clone(t.end[n:])
	}
	return len(p), nil
}

func (t *tail) String() string {
	t.mu.Lock()
	defer t.mu.Unlock()
	return string(t.end)
}
