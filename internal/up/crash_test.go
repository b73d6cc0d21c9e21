package up

import (
	"context"
	"encoding/json"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/joho/godotenv"

	"skerry.dev/skerry/internal/testkit"
)

// The crash test runs a whole up in a process of its own, over a server and an
// agent that only keep a file each, and kills it after the n-th thing that the
// start changes, for every n.

const (
	upVar    = "SKERRY_UP_TEST_UP"    // run Run on this directory
	faultVar = "SKERRY_UP_TEST_FAULT" // which change is the last
)

// world is what the fake server keeps.
type world struct {
	Email, Password string
	Keys            map[string]string // id → name
	Hosts           map[string]string // id → status
	Token           string            // the live registration token
	Base            bool
	Changes         int // of this start
}

func worldFile(data string) string { return filepath.Join(data, "world.json") }

func loadWorld(data string) world {
	w := world{Keys: map[string]string{}, Hosts: map[string]string{}}
	if raw, err := os.ReadFile(worldFile(data)); err == nil {
		if err := json.Unmarshal(raw, &w); err != nil {
			panic(err)
		}
	}
	return w
}

// change makes one change durable; the one that the fault names is the last
// thing this start does.
func change(data string, pid int, f func(*world)) {
	w := loadWorld(data)
	f(&w)
	w.Changes++
	raw, err := json.Marshal(w)
	if err == nil {
		err = writeFile(worldFile(data), raw)
	}
	if err != nil {
		panic(err)
	}
	if strconv.Itoa(w.Changes) == os.Getenv(faultVar) {
		_ = syscall.Kill(pid, syscall.SIGKILL)
		select {}
	}
}

// fakeServer answers what a start asks of the API.
func fakeServer(data string) {
	parent := os.Getppid()
	var mu sync.Mutex
	mux := http.NewServeMux()
	handle := func(pattern string, f func(r *http.Request) (int, any)) {
		mux.HandleFunc(pattern, func(w http.ResponseWriter, r *http.Request) {
			mu.Lock()
			defer mu.Unlock()
			status, v := f(r)
			w.Header().Set("Content-Type", "application/json")
			w.WriteHeader(status)
			if v != nil {
				_ = json.NewEncoder(w).Encode(v)
			}
		})
	}
	type m = map[string]any
	now := "2026-01-02T03:04:05.000000Z"
	amounts := m{"cpu_millis": 1, "memory_mb": 1, "disk_mb": 1}
	host := func(id, status string) m {
		return m{
			"id": id, "name": hostName, "type": "regular", "status": status, "team_id": "team-0", "provider": "", "availability_zone": "", "labels": m{}, "arch": "x",
			"cpu_count": 1, "memory_bytes": 1, "disk_bytes": 1, "engines": []m{{"name": "fake", "version": "1", "healthy": true}}, "created_at": now,
			"capacity": amounts, "reserved": amounts, "needs_registration": false, "drained": false,
		}
	}
	created := func(id string) m {
		token := fmt.Sprintf("t%d", loadWorld(data).Changes)
		change(data, parent, func(w *world) { w.Hosts[id], w.Token = "pending", token })
		return m{"host": host(id, "pending"), "registration_token": token, "expires_at": "2126-01-02T03:04:05.000000Z", "ca_sha256": strings.Repeat("a", 64), "install_command": "x"}
	}
	template := m{"id": "tpl-1", "name": "base", "status": "ready", "platform": true, "vcpus": 1, "memory_mb": 1, "disk_mb": 1, "engine": "fake", "created_at": now}
	missing := m{"error": m{"code": "not_found", "message": "No.", "request_id": "r"}}

	if loadWorld(data).Email == "" { // anybody could sign up under the admin's address
		_ = writeFile(filepath.Join(data, "opened-too-early"), nil)
	}
	handle("GET /readyz", func(*http.Request) (int, any) { return 200, nil })
	handle("POST /v1/auth/login", func(r *http.Request) (int, any) {
		var c struct{ Email, Password string }
		_ = json.NewDecoder(r.Body).Decode(&c)
		if w := loadWorld(data); c.Email != w.Email || c.Password != w.Password || c.Password == "" {
			return 401, m{"error": m{"code": "invalid_credentials", "message": "No.", "request_id": "r"}}
		}
		return 200, m{"token": "jwt", "expires_at": now, "user": m{"id": "usr-1", "email": c.Email, "name": "A", "is_admin": true}, "team": nil}
	})
	handle("POST /v1/auth/logout", func(*http.Request) (int, any) { return 204, nil })
	key := func(id, name string) m {
		return m{"id": id, "name": name, "prefix": "skerry_", "scopes": []string{}, "created_by": "A", "created_at": now}
	}
	handle("GET /v1/api-keys", func(*http.Request) (int, any) {
		items := []m{}
		for id, name := range loadWorld(data).Keys {
			items = append(items, key(id, name))
		}
		return 200, m{"items": items}
	})
	handle("POST /v1/api-keys", func(*http.Request) (int, any) {
		id := fmt.Sprintf("key-%d", time.Now().UnixNano())
		change(data, parent, func(w *world) { w.Keys[id] = keyName })
		return 201, m{"api_key": key(id, keyName), "key": "skerry_" + id}
	})
	handle("DELETE /v1/api-keys/{id}", func(r *http.Request) (int, any) {
		change(data, parent, func(w *world) { delete(w.Keys, r.PathValue("id")) })
		return 204, nil
	})
	handle("GET /v1/hosts", func(*http.Request) (int, any) {
		items := []m{}
		for id, status := range loadWorld(data).Hosts {
			items = append(items, host(id, status))
		}
		return 200, m{"items": items}
	})
	handle("POST /v1/hosts", func(*http.Request) (int, any) {
		return 201, created(fmt.Sprintf("host-%d", time.Now().UnixNano()))
	})
	handle("POST /v1/hosts/{id}/token", func(r *http.Request) (int, any) { return 201, created(r.PathValue("id")) })
	handle("GET /v1/hosts/{id}", func(r *http.Request) (int, any) {
		status := loadWorld(data).Hosts[r.PathValue("id")]
		// An agent is heard of only after it has kept what it registered with.
		if _, err := os.Stat(filepath.Join(AgentDir(data), "id")); err != nil && status == "online" {
			status = "unreachable"
		}
		return 200, host(r.PathValue("id"), status)
	})
	handle("POST /register", func(r *http.Request) (int, any) {
		var id string
		change(data, parent, func(w *world) {
			if r.URL.Query().Get("token") != w.Token {
				return
			}
			for host := range w.Hosts {
				w.Hosts[host], id = "online", host
			}
		})
		return 200, id
	})
	handle("GET /v1/templates/base", func(*http.Request) (int, any) {
		if loadWorld(data).Base {
			return 200, template
		}
		return 404, missing
	})
	handle("POST /v1/templates/base/build", func(*http.Request) (int, any) {
		change(data, parent, func(w *world) { w.Base = true })
		return 200, m{"template": template}
	})
	_ = http.ListenAndServe(os.Getenv("SKERRY_LISTEN"), mux)
}

// fakeAgent registers once and keeps its id.
func fakeAgent(data string) {
	file := filepath.Join(AgentDir(data), "id")
	if _, err := os.Stat(file); err != nil {
		answer, err := http.Post(baseURL(os.Getenv("SKERRY_LISTEN"))+"/register?token="+os.Getenv("SKERRY_REGISTRATION_TOKEN"), "", nil)
		if err != nil {
			os.Exit(1)
		}
		var id string
		if json.NewDecoder(answer.Body).Decode(&id) != nil || id == "" {
			os.Exit(1)
		}
		if os.MkdirAll(AgentDir(data), 0o700) != nil || writeFile(file, []byte(id)) != nil {
			os.Exit(1)
		}
	}
	select {}
}

// testUp is the process that is killed.
func testUp(data string) {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM)
	defer stop()
	listen := os.Getenv("SKERRY_LISTEN")
	err := Run(ctx, Config{
		Data: data, Listen: listen, AgentListen: "127.0.0.1:0", HostListen: "127.0.0.1:0", DatabaseURL: "none",
		Program: os.Args[0], Environ: os.Environ(), Out: os.Stdout,
		Ready: func() { _ = writeFile(filepath.Join(data, "ready"), nil) },
		Parts: Parts{
			Migrate: func(context.Context, string) error { return nil },
			EnsureAdmin: func(_ context.Context, _, _, email, password string) error {
				change(data, os.Getpid(), func(w *world) { w.Email, w.Password = email, password })
				return nil
			},
			HostID: func(dir string) (string, error) {
				raw, err := os.ReadFile(filepath.Join(dir, "id"))
				if os.IsNotExist(err) {
					return "", nil
				}
				return string(raw), err
			},
		},
	})
	if err != nil {
		fmt.Println("up:", err)
		os.Exit(1)
	}
}

func startUp(t *testing.T, data, listen, fault string) (*exec.Cmd, *strings.Builder) {
	t.Helper()
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), upVar+"="+data, faultVar+"="+fault, "SKERRY_LISTEN="+listen)
	var out strings.Builder
	cmd.Stdout, cmd.Stderr = &out, &out
	cmd.WaitDelay = 10 * time.Second
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	return cmd, &out
}

func TestO1_KilledAnywhereAndFinishedByTheNext(t *testing.T) {
	const changes = 5 // admin, key, host, registration, base
	for n := 1; n <= changes; n++ {
		t.Run(strconv.Itoa(n), func(t *testing.T) {
			t.Parallel()
			data := t.TempDir()
			l, err := net.Listen("tcp", "127.0.0.1:0")
			if err != nil {
				t.Fatal(err)
			}
			listen := l.Addr().String()
			_ = l.Close()

			first, out := startUp(t, data, listen, strconv.Itoa(n))
			if err := first.Wait(); err == nil || first.ProcessState.Sys().(syscall.WaitStatus).Signal() != syscall.SIGKILL {
				t.Fatalf("the first start was to be killed at change %d: %v\n%s", n, err, out)
			}
			// Its children end with it, or the next start has no port.
			testkit.Eventually(t, 30*time.Second, "the port to be free", func() bool {
				l, err := net.Listen("tcp", listen)
				if err == nil {
					_ = l.Close()
				}
				return err == nil
			})
			second, out := startUp(t, data, listen, "")
			testkit.Eventually(t, 60*time.Second, "the second start to be ready", func() bool {
				_, err := os.Stat(filepath.Join(data, "ready"))
				return err == nil
			})
			if err := second.Process.Signal(syscall.SIGTERM); err != nil {
				t.Fatal(err)
			}
			if err := second.Wait(); err != nil {
				t.Fatalf("the second start: %v\n%s", err, out)
			}
			w := loadWorld(data)
			known, err := godotenv.Read(CredentialsFile(data))
			if err != nil {
				t.Fatal(err)
			}
			if len(w.Keys) != 1 || w.Keys[strings.TrimPrefix(known["SKERRY_API_KEY"], "skerry_")] != keyName {
				t.Errorf("keys %v, the file has %s: want the one of the file and no other", w.Keys, known["SKERRY_API_KEY"])
			}
			if known["SKERRY_ADMIN_PASSWORD"] != w.Password || known["SKERRY_ADMIN_EMAIL"] != w.Email || known["SKERRY_URL"] != "http://"+listen {
				t.Errorf("the file says %v, the server %+v", known, w)
			}
			if _, err := os.Stat(filepath.Join(data, "opened-too-early")); err == nil {
				t.Error("A11: the server was open before there was an admin")
			}
			if len(w.Hosts) != 1 || !w.Base {
				t.Errorf("hosts %v, base %v, want one host and the template", w.Hosts, w.Base)
			}
			info, err := os.Stat(CredentialsFile(data))
			if err != nil || info.Mode().Perm() != 0o600 {
				t.Errorf("credentials have mode %v, %v", info.Mode(), err)
			}
			if shown := strings.Contains(out.String(), known["SKERRY_API_KEY"]); shown != (n <= 2) {
				t.Errorf("the second start showed the key: %v; only the start that writes the file does\n%s", shown, out)
			}
		})
	}
}
