package together_test

import (
	"context"
	"crypto/tls"
	"encoding/json"
	"log/slog"
	"net"
	"net/http"
	"path/filepath"
	"runtime"
	"sync"
	"testing"
	"time"

	"skerry.dev/skerry/internal/agent/app"
	"skerry.dev/skerry/internal/agent/app/apptest"
	"skerry.dev/skerry/internal/agent/engine/fake"
	"skerry.dev/skerry/internal/agent/identity"
	"skerry.dev/skerry/internal/agent/identity/identitytest"
	"skerry.dev/skerry/internal/agent/manager"
	"skerry.dev/skerry/internal/control/host"
	"skerry.dev/skerry/internal/control/hostlink"
	"skerry.dev/skerry/internal/control/principal"
	"skerry.dev/skerry/internal/control/sandbox"
	"skerry.dev/skerry/internal/control/sandbox/sandboxtest"
	"skerry.dev/skerry/internal/control/scheduler"
	"skerry.dev/skerry/internal/control/template"
	"skerry.dev/skerry/internal/control/template/templatepg"
	"skerry.dev/skerry/internal/kernel/id"
	"skerry.dev/skerry/internal/pg/pgtest"
	"skerry.dev/skerry/internal/testkit"
)

// soon bounds the waits for what happens by itself.
const soon = 30 * time.Second

// world is a database, one host with a real agent on a simulated machine, and
// the wire between the two.
type world struct {
	t       *testing.T
	db      *sandboxtest.World
	machine *apptest.Machine
	ca      *identitytest.CA
	join    *identitytest.Control // whom the agent registers with and reports to
	dir     string
	host    id.Host
	by      principal.Principal
	wire    *wire
	agent   *agent
	silent  bool // guarded by join
}

func newWorld(t *testing.T) *world {
	t.Helper()
	w := &world{
		t: t, db: sandboxtest.NewWorld(t, pgtest.New(t), 8, 8192), machine: apptest.NewMachine(), ca: identitytest.NewCA(t), dir: t.TempDir(),
	}
	w.host, w.by = w.db.Hosts[0], w.db.User()
	w.join = identitytest.NewControl(t, w.ca, identity.ControlURI)
	w.join.HostID = w.host
	w.join.Intercept = func(out http.ResponseWriter, _ *http.Request) bool {
		if w.silent {
			out.WriteHeader(http.StatusBadGateway)
		}
		return w.silent
	}
	w.wire = newWire(t, w.ca)
	return w
}

func (w *world) setSilent(silent bool) {
	w.join.Lock()
	defer w.join.Unlock()
	w.silent = silent
}

// agent is one run of the host's agent.
type agent struct {
	stop func()
	// dieAt is the step whose goroutine never goes on; died is closed there.
	dieAt manager.Step
	died  chan struct{}
}

// boot starts the agent, on what its predecessor left. It is dead to the world
// from after the step on, when one is given.
func (w *world) boot(dieAt manager.Step, change ...func(*app.Config)) *agent {
	w.t.Helper()
	a := &agent{dieAt: dieAt, died: make(chan struct{})}
	cfg := app.Config{
		DataDir: filepath.Join(w.dir, "agent"), Listen: "127.0.0.1:0", ControlURL: w.join.URL, Version: "v1",
		RegistrationToken: w.join.Token, CASHA256: w.ca.Pin(), Heartbeat: 20 * time.Millisecond, LostContactPause: -1,
	}
	for _, c := range change {
		c(&cfg)
	}
	opts := w.machine.Options()
	ready := make(chan net.Addr, 1)
	opts.Ready = func(at net.Addr) { ready <- at }
	var once sync.Once
	opts.Step = func(s manager.Step) {
		if s == dieAt {
			once.Do(func() { close(a.died) })
			runtime.Goexit() // what held it is never finished, as after a kill
		}
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- app.RunWith(ctx, cfg, opts) }()
	a.stop = sync.OnceFunc(func() {
		w.wire.cut()
		cancel()
		if err := <-done; err != nil {
			w.t.Errorf("the agent ended with %v", err)
		}
	})
	w.t.Cleanup(a.stop)
	select {
	case at := <-ready:
		w.exec(`UPDATE hosts SET address = $1, status = 'online', generation = generation + 1 WHERE id = $2`, at.String(), w.host)
	case err := <-done:
		w.t.Fatalf("the agent did not start: %v", err)
	case <-time.After(soon):
		w.t.Fatal("the agent did not start in time")
	}
	w.agent = a
	return a
}

func (w *world) exec(sql string, args ...any) {
	w.t.Helper()
	if _, err := w.db.Pool.Exec(context.Background(), sql, args...); err != nil {
		w.t.Fatalf("%s: %v", sql, err)
	}
}

// offered is what the heartbeats say of the engines, once they are of that
// version.
func (w *world) offered(version string) (engines json.RawMessage) {
	w.t.Helper()
	testkit.Eventually(w.t, soon, "a heartbeat that names version "+version, func() bool {
		w.join.Lock()
		defer w.join.Unlock()
		if len(w.join.Heartbeats) == 0 {
			return false
		}
		engines, _ = json.Marshal(w.join.Heartbeats[len(w.join.Heartbeats)-1]["engines"])
		all, err := host.ParseEngines(engines)
		return err == nil && len(all) == 1 && all[0].Version == version && len(all[0].CPUFeatures) > 0
	})
	return engines
}

// ref is the host as the rooms know it now.
func (w *world) ref() host.Ref {
	w.t.Helper()
	ref := host.Ref{ID: w.host, Online: true}
	if err := w.db.Pool.QueryRow(w.t.Context(), `SELECT address FROM hosts WHERE id = $1`, w.host).Scan(&ref.Address); err != nil {
		w.t.Fatal(err)
	}
	return ref
}

// server is one run of the control plane's sandbox room.
type server struct {
	*sandbox.Service
	sweep      *sandbox.Sweep
	reconciler *sandbox.Reconciler
	stop       func()
}

func (w *world) serve(cfg sandbox.Config) *server {
	w.t.Helper()
	cfg.Poll, cfg.Lease = 10*time.Millisecond, 500*time.Millisecond
	log := slog.New(slog.DiscardHandler)
	templates := template.NewService(templatepg.New(w.db.Pool), nil, nil, nil)
	watch := sandbox.NewWatch(w.db.Store, log)
	runner := sandbox.NewRunner(w.db.Store, w.wire, templates, w.db.Secret, watch, cfg, log)
	s := &server{Service: sandbox.NewService(w.db.Store, scheduler.RoundRobinScheduler{Overcommit: sandboxtest.Overcommit()}, templates, w.wire, runner, watch, w.db.Secret, log)}
	s.sweep = sandbox.NewSweep(s.Service, log)
	s.reconciler = sandbox.NewReconciler(s.Service, time.Nanosecond, log)
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	wg.Go(func() { _ = runner.Run(ctx) })
	wg.Go(func() { _ = watch.Run(ctx) })
	s.stop = sync.OnceFunc(func() {
		cancel()
		wg.Wait()
	})
	w.t.Cleanup(s.stop)
	return s
}

// reconcile is one pass over the host; a pass that fails is one that was missed.
func (w *world) reconcile(s *server) { _ = s.reconciler.ReconcileHost(w.t.Context(), w.ref()) }

func (w *world) create(s *server, change ...func(*sandbox.CreateRequest)) sandbox.Sandbox {
	w.t.Helper()
	memory, disk := int64(256), int64(256)
	req := sandbox.CreateRequest{Template: "base", MemoryMB: &memory, DiskMB: &disk, Env: map[string]string{"A": "b"}}
	for _, c := range change {
		c(&req)
	}
	receipt, err := s.Create(w.t.Context(), w.by, req)
	if err != nil {
		w.t.Fatal(err)
	}
	x, err := s.Await(w.t.Context(), receipt)
	if err != nil {
		w.t.Fatal(err)
	}
	return x
}

func (w *world) row(x id.Sandbox) sandbox.Sandbox {
	w.t.Helper()
	got, err := w.db.Store.Get(context.Background(), x)
	if err != nil {
		w.t.Fatal(err)
	}
	return got
}

func (w *world) becomes(x id.Sandbox, want sandbox.Status, meanwhile ...func()) sandbox.Sandbox {
	w.t.Helper()
	testkit.Eventually(w.t, soon, "the sandbox is "+string(want), func() bool {
		for _, do := range meanwhile {
			do()
		}
		return w.row(x).Status == want
	})
	return w.row(x)
}

// instance is the only one that exists.
func (w *world) instance() *fake.Instance {
	w.t.Helper()
	all := w.machine.World.Instances()
	if len(all) != 1 {
		w.t.Fatalf("%d instances exist, not one", len(all))
	}
	i, _ := w.machine.World.Instance(all[0])
	return i
}

// write leaves something in the memory and on the disk of the only instance.
func (w *world) write(what string) {
	w.t.Helper()
	i := w.instance()
	i.SetMemory([]byte(what))
	i.SetFile("/work", []byte(what))
}

// holds checks what the only instance remembers; memory "" is that of a fresh
// boot.
func (w *world) holds(memory, disk string) {
	w.t.Helper()
	i := w.instance()
	file, _ := i.File("/work")
	if string(i.Memory()) != memory || string(file) != disk {
		w.t.Errorf("ST-04: it remembers %q and has %q on disk; want %q and %q", i.Memory(), file, memory, disk)
	}
}

// agrees checks that what the host holds is what the row says, and no more.
func (w *world) agrees(x id.Sandbox) {
	w.t.Helper()
	row := w.row(x)
	var inv sandbox.Inventory
	testkit.Eventually(w.t, soon, "the host holds what the row says", func() bool {
		var err error
		if inv, err = w.wire.Inventory(w.t.Context(), w.ref()); err != nil {
			return false
		}
		instances, slots, images := w.machine.Held()
		living := 0
		if row.Status == sandbox.StatusRunning {
			living = 1
		}
		return instances == living && slots == living && images == living
	})
	want := sandbox.PhaseRunning
	if row.Status == sandbox.StatusPaused {
		want = sandbox.PhasePaused
	}
	if len(inv.Instances) != 1 || inv.Instances[0].Phase != want {
		w.t.Fatalf("the row is %s, the host says %+v", row.Status, inv.Instances)
	}
	if row.Status == sandbox.StatusPaused && (row.StateID == nil || inv.Instances[0].State != *row.StateID) {
		w.t.Errorf("the row's state is %v, the host's %s", row.StateID, inv.Instances[0].State)
	}
}

// events are the kinds of what happened, the oldest first.
func (w *world) events(x id.Sandbox) (kinds []string, data []map[string]any) {
	w.t.Helper()
	rows, err := w.db.Pool.Query(w.t.Context(), `SELECT kind, data FROM sandbox_events WHERE sandbox_id = $1 ORDER BY id`, x)
	if err != nil {
		w.t.Fatal(err)
	}
	defer rows.Close()
	for rows.Next() {
		var kind string
		var raw json.RawMessage
		if err := rows.Scan(&kind, &raw); err != nil {
			w.t.Fatal(err)
		}
		var one map[string]any
		_ = json.Unmarshal(raw, &one)
		kinds, data = append(kinds, kind), append(data, one)
	}
	return kinds, data
}

func controlIdentity(ca *identitytest.CA) hostlink.Identity {
	cert := ca.ControlCertificate()
	return hostlink.Identity{Roots: ca.Pool(), Certificate: func(context.Context) (*tls.Certificate, error) { return &cert, nil }}
}
