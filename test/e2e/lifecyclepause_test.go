package e2e

import (
	"strings"
	"syscall"
	"testing"
	"time"

	"skerry.dev/skerry/internal/testkit"
)

// Paused and resumed again and again while everything in it changes, a sandbox
// keeps every byte, its processes, its sockets and the time of day.
func TestS5_S6_ST01_ST03_RS01_NoCycleLosesAnything(t *testing.T) {
	in := skerry(t)
	w := in.worker(t, nil)
	command := in.follow(t, w.id)
	for range scaled(20, 3) {
		w.grow(t)
		w.look(t)
		start := time.Now()
		in.pause(t, w.id)
		paused := time.Since(start)
		if code, err := in.Try(t.Context(), "POST", "/v1/sandboxes/"+w.id+"/pause", map[string]any{}, nil); code != 409 {
			t.Errorf("S6: a second pause: %d, %v; want 409", code, err)
		}
		if code, err := in.Try(t.Context(), "POST", "/v1/sandboxes/"+w.id+"/exec", map[string]any{"cmd": "true"}, nil); code != 409 {
			t.Errorf("TL-06: a command in a paused sandbox: %d, %v; want 409", code, err)
		}
		start = time.Now()
		in.resume(t, w.id)
		t.Logf("%d files: pause %s, resume %s", len(w.files), paused, time.Since(start))
		w.look(t)
		command.reattach()
		if code, err := in.Try(t.Context(), "POST", "/v1/sandboxes/"+w.id+"/resume", map[string]any{}, nil); code != 409 {
			t.Errorf("S6: a second resume: %d, %v; want 409", code, err)
		}
		if left := time.Until(in.state(t, w.id).DeadlineAt); left < time.Hour {
			t.Errorf("S6: the deadline is in %s, want two hours from the resume", left)
		}
	}
	command.finish(in)
}

// Whatever has a sandbox paused, it keeps the same.
func TestST02_S7_S12_S15_EveryTriggerKeepsTheSame(t *testing.T) {
	in := skerry(t)
	for name, trigger := range map[string]struct {
		create map[string]any
		reason string // why it is paused then; empty: the trigger lets it go on by itself
		pull   func(t *testing.T, w *worker)
	}{
		"the API": {reason: "requested", pull: func(t *testing.T, w *worker) { in.pause(t, w.id) }},
		"nothing goes on in it": {create: map[string]any{"idle_timeout_sec": 5}, reason: "idle", pull: func(t *testing.T, w *worker) {
			in.becomes(t, w.id, "paused")
		}},
		"its deadline": {create: map[string]any{"on_timeout": "pause"}, reason: "deadline", pull: func(t *testing.T, w *worker) {
			in.Must(t, "POST", "/v1/sandboxes/"+w.id+"/timeout", map[string]any{"timeout_sec": 1}, nil)
			in.becomes(t, w.id, "paused")
		}},
		"the API, and both daemons die meanwhile": {reason: "requested", pull: func(t *testing.T, w *worker) {
			in.pause(t, w.id)
			in.killed(t, "agent", "server")
			in.becomes(t, w.id, "paused")
		}},
	} {
		t.Run(name, func(t *testing.T) {
			w := in.worker(t, trigger.create)
			for range scaled(3, 1) {
				w.grow(t)
				w.look(t)
				trigger.pull(t, w)
				if x := in.state(t, w.id); x.Status != "paused" || x.PausedReason != trigger.reason {
					t.Fatalf("it is %s because of %q, want paused, %q", x.Status, x.PausedReason, trigger.reason)
				}
				in.resumed(t, w.id)
				w.look(t)
			}
			if times(in.history(t, w.id), "paused") == 0 {
				t.Error("S10: its history does not say that it was paused")
			}
		})
	}
	t.Run("the machine goes down", func(t *testing.T) { in.goesDown(t) })
}

// goesDown has an agent told to pause everything when it ends: alone, and with
// all of Skerry. Nobody wanted these pauses, so that the sandboxes go on as soon
// as their host is back.
func (in *machine) goesDown(t *testing.T) {
	in.restart(t, "SKERRY_PAUSE_ON_STOP=1")
	defer in.restart(t, "SKERRY_PAUSE_ON_STOP=false")
	w, paused := in.worker(t, nil), in.worker(t, nil)
	in.pause(t, paused.id)
	for name, down := range map[string]func(t *testing.T){
		"the agent": func(t *testing.T) {
			pid := in.process(t, "agent")
			if err := syscall.Kill(pid, syscall.SIGTERM); err != nil {
				t.Fatal(err)
			}
			testkit.Eventually(t, 2*time.Minute, "another agent", func() bool {
				now := in.process(t, "agent")
				return now != 0 && now != pid
			})
		},
		"everything": func(t *testing.T) {
			if err := in.Stop(); err != nil {
				t.Fatal(err)
			}
			for _, line := range in.traces(t) {
				if strings.HasPrefix(line, "process") {
					t.Errorf("S15: after an orderly shutdown there is still %s", line)
				}
			}
			if err := in.Start(t.Context()); err != nil {
				t.Fatal(err)
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			w.grow(t)
			w.look(t)
			before := len(in.history(t, w.id))
			down(t)
			testkit.Eventually(t, 3*time.Minute, "it was paused and goes on", func() bool {
				var events struct{ Items []happened }
				_, err := in.Try(t.Context(), "GET", "/v1/sandboxes/"+w.id+"/events?limit=200", nil, &events)
				return err == nil && times(events.Items[:len(events.Items)-before], "resumed") > 0
			})
			w.look(t)
			if x := in.state(t, paused.id); x.Status != "paused" {
				t.Errorf("the one that somebody had paused is %s", x.Status)
			}
		})
	}
	for _, e := range in.history(t, w.id) {
		if e.Kind == "paused" && e.Data["reason"] != "host_shutdown" {
			t.Errorf("S10: it was paused because of %v", e.Data)
		}
	}
	in.resume(t, paused.id)
	paused.look(t)
}

// restart stops everything as Ctrl-C does and starts it with other settings.
func (in *machine) restart(t *testing.T, settings ...string) {
	t.Helper()
	if err := in.Stop(); err != nil {
		t.Fatal(err)
	}
	in.Set(settings...)
	if err := in.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
}

// killed kills processes of Skerry and waits until others have taken their
// place.
func (in *machine) killed(t *testing.T, victims ...string) {
	t.Helper()
	old := map[string]int{}
	for _, victim := range victims {
		pid := in.process(t, victim)
		if pid == 0 {
			t.Fatalf("there is no %s to kill", victim)
		}
		if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
			t.Fatal(err)
		}
		old[victim] = pid
	}
	for victim, pid := range old {
		testkit.Eventually(t, time.Minute, victim+" is back", func() bool {
			now := in.process(t, victim)
			return now != 0 && now != pid
		})
	}
}

// resumed resumes a sandbox, however long its host takes to be back.
func (in *machine) resumed(t *testing.T, id string) {
	t.Helper()
	testkit.Eventually(t, 3*time.Minute, id+" is resumed", func() bool {
		code, err := in.Try(t.Context(), "POST", "/v1/sandboxes/"+id+"/resume", map[string]any{}, nil)
		if code == 409 { // an answer that was lost, or the host's own doing
			return in.state(t, id).Status == "running"
		}
		if code == 400 || code == 404 {
			t.Fatal(err)
		}
		return err == nil
	})
}

// Without its memory a sandbox keeps its files, and boots.
func TestS6_DiskOnlyKeepsFilesAndEndsProcesses(t *testing.T) {
	in := skerry(t)
	w := in.worker(t, nil)
	w.grow(t)
	w.look(t)
	in.Must(t, "POST", "/v1/sandboxes/"+w.id+"/pause", map[string]any{"memory": false}, nil)
	in.resume(t, w.id)
	got, err := in.seen(t, w.id)
	if err != nil {
		t.Fatal(err)
	}
	if got.Silent == "" || got.Boot == w.last.Boot {
		t.Errorf("the program still answers, %+v", got)
	}
	w.disk(t, got)
}
