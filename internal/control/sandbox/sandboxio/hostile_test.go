package sandboxio_test

import (
	"encoding/binary"
	"fmt"
	"io"
	"math"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	fspb "skerry.dev/skerry/gen/guestrpc/filesystem"
	pb "skerry.dev/skerry/gen/guestrpc/process"
	"skerry.dev/skerry/internal/control/principal"
	"skerry.dev/skerry/internal/control/sandbox/sandboxio"
	"skerry.dev/skerry/internal/control/sandbox/sandboxio/sandboxiotest"
	"skerry.dev/skerry/internal/kernel/errs"
	"skerry.dev/skerry/internal/kernel/page"
)

// scripted is a guest that says what a test tells it to, byte by byte.
func scripted(t testing.TB, opt sandboxio.Options, serve http.HandlerFunc) (*sandboxio.Service, *sandboxiotest.Targets) {
	t.Helper()
	server := httptest.NewServer(serve)
	t.Cleanup(server.Close)
	link := sandboxiotest.NewLink(strings.TrimPrefix(server.URL, "http://"))
	t.Cleanup(link.Close)
	targets := sandboxiotest.NewTargets(link)
	return sandboxio.New(targets, nil, opt), targets
}

func framed(flag byte, body []byte) []byte {
	return append(binary.BigEndian.AppendUint32([]byte{flag}, uint32(len(body))), body...)
}

func event(t testing.TB, e *pb.ProcessEvent) []byte {
	t.Helper()
	raw, err := proto.Marshal(&pb.StartResponse{Event: e})
	if err != nil {
		t.Fatal(err)
	}
	return framed(0, raw)
}

func started(t testing.TB) []byte {
	return event(t, &pb.ProcessEvent{Event: &pb.ProcessEvent_Start{Start: &pb.ProcessEvent_StartEvent{Pid: 1}}})
}

func stdout(t testing.TB, offset uint64, data string) []byte {
	return event(t, &pb.ProcessEvent{Event: &pb.ProcessEvent_Data{Data: &pb.ProcessEvent_DataEvent{
		Offset: offset, Output: &pb.ProcessEvent_DataEvent_Stdout{Stdout: []byte(data)},
	}}})
}

func exited(t testing.TB, code int32, ok bool, status string) []byte {
	return event(t, &pb.ProcessEvent{Event: &pb.ProcessEvent_End{End: &pb.ProcessEvent_EndEvent{ExitCode: code, Exited: ok, Status: status}}})
}

// quick is for guests that fail: one that answers may need longer.
func quick() sandboxio.Options {
	return sandboxio.Options{ResumeWindow: 300 * time.Millisecond, Silence: 200 * time.Millisecond, StartWait: 200 * time.Millisecond}
}

func stream(w http.ResponseWriter, parts ...[]byte) {
	w.Header().Set("Content-Type", "application/connect+proto")
	for _, p := range parts {
		_, _ = w.Write(p)
	}
	_ = http.NewResponseController(w).Flush()
}

// SX-02: whatever a guest answers that is not a whole, consistent story ends as
// an error, within bounds of time and memory, and never as exit code 0.
func TestSX02_AGuestThatBreaksTheProtocolIsNeverASuccess(t *testing.T) {
	whole := [][]byte{started(t), stdout(t, 0, "hello"), exited(t, 0, true, "exit status 0"), framed(2, []byte("{}"))}
	var flat []byte
	for _, p := range whole[:3] {
		flat = append(flat, p...)
	}
	scripts := map[string]func(http.ResponseWriter, *http.Request){
		"out of order": func(w http.ResponseWriter, _ *http.Request) {
			stream(w, started(t), stdout(t, 7, "x"), whole[2], whole[3])
		},
		"told twice": func(w http.ResponseWriter, _ *http.Request) {
			stream(w, started(t), whole[1], whole[1], whole[2], whole[3])
		},
		"no start":   func(w http.ResponseWriter, _ *http.Request) { stream(w, whole[1], whole[2], whole[3]) },
		"two starts": func(w http.ResponseWriter, _ *http.Request) { stream(w, started(t), started(t), whole[2], whole[3]) },
		"no end":     func(w http.ResponseWriter, _ *http.Request) { stream(w, started(t), whole[3]) },
		"nothing":    func(w http.ResponseWriter, _ *http.Request) { stream(w) },
		"silence":    func(w http.ResponseWriter, r *http.Request) { stream(w, started(t)); <-r.Context().Done() },
		"no answer":  func(_ http.ResponseWriter, r *http.Request) { _, _ = io.Copy(io.Discard, r.Body); <-r.Context().Done() },
		"a page":     func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, "<html>") },
		"a redirect": func(w http.ResponseWriter, r *http.Request) {
			http.Redirect(w, r, "http://127.0.0.1:1/", http.StatusFound)
		},
		"a huge frame": func(w http.ResponseWriter, _ *http.Request) {
			stream(w, started(t), []byte{0, 0xff, 0xff, 0xff, 0xff}, make([]byte, 1<<20))
		},
		"junk": func(w http.ResponseWriter, _ *http.Request) { stream(w, framed(0, []byte("\xff\xff\xff\xff"))) },
		"endless headers": func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("X-Long", strings.Repeat("x", 1<<20))
			stream(w, whole...)
		},
		"our token refused": func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusUnauthorized) },
		"a false deadline": func(w http.ResponseWriter, _ *http.Request) {
			stream(w, started(t), framed(2, []byte(`{"error":{"code":"deadline_exceeded"}}`)))
		},
		"an impossible gap": func(w http.ResponseWriter, _ *http.Request) {
			gap := event(t, &pb.ProcessEvent{Event: &pb.ProcessEvent_Gap{Gap: &pb.ProcessEvent_GapEvent{LostBytes: math.MaxUint64}}})
			stream(w, started(t), whole[1], gap, whole[2], whole[3])
		},
	}
	for n := 1; n < len(flat); n += 3 {
		scripts[fmt.Sprintf("cut after %d", n)] = func(w http.ResponseWriter, _ *http.Request) {
			stream(w, flat[:n])
			panic(http.ErrAbortHandler)
		}
	}
	for name, script := range scripts {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			svc, targets := scripted(t, quick(), func(w http.ResponseWriter, r *http.Request) {
				if strings.HasSuffix(r.URL.Path, "/Start") || strings.HasSuffix(r.URL.Path, "/Connect") {
					script(w, r)
					return
				}
				w.WriteHeader(http.StatusNotFound)
			})
			begin := time.Now()
			res, err := svc.Exec(t.Context(), principal.System("test"), targets.Sandbox, shell("true"))
			if err == nil {
				t.Fatalf("got %+v", res)
			}
			if d := time.Since(begin); d > 20*time.Second {
				t.Errorf("took %s: %v", d, err)
			}
		})
	}
	t.Run("whole", func(t *testing.T) {
		svc, targets := scripted(t, sandboxio.Options{}, func(w http.ResponseWriter, _ *http.Request) { stream(w, whole...) })
		if res, err := svc.Exec(t.Context(), principal.System("test"), targets.Sandbox, shell("true")); err != nil || res.Stdout != "hello" || res.ExitCode != 0 {
			t.Errorf("got %+v, %v", res, err)
		}
	})
}

func TestS8_ExitsThatMakeNoSenseAreNoSuccess(t *testing.T) {
	for _, c := range []struct {
		end  []byte
		want int
	}{
		{exited(t, 0, false, ""), 255},
		{exited(t, 0, false, "signal: killed"), 137},
		{exited(t, -1, false, "signal: aborted (core dumped)"), 134},
		{exited(t, -1, false, "signal: nonsense"), 255},
		{exited(t, 256, true, "exit status 256"), 255},
		{exited(t, 77, true, "exit status 77"), 77},
	} {
		svc, targets := scripted(t, sandboxio.Options{}, func(w http.ResponseWriter, _ *http.Request) { stream(w, started(t), c.end, framed(2, []byte("{}"))) })
		if res, err := svc.Exec(t.Context(), principal.System("test"), targets.Sandbox, shell("true")); err != nil || res.ExitCode != c.want {
			t.Errorf("want %d, got %+v, %v", c.want, res, err)
		}
	}
}

func TestSX02_ALostStartIsAskedForAgainAndRunsOnce(t *testing.T) {
	var ids atomic.Pointer[string]
	var starts atomic.Int64
	svc, targets := scripted(t, sandboxio.Options{}, func(w http.ResponseWriter, r *http.Request) {
		raw, _ := io.ReadAll(r.Body)
		var req pb.StartRequest
		if err := proto.Unmarshal(raw[5:], &req); err != nil {
			t.Error(err)
		}
		if id := ids.Swap(&req.ExecId); id != nil && *id != req.ExecId || req.ExecId == "" || !req.Replay {
			t.Errorf("another id: %v", &req)
		}
		if r.Header.Get("Connect-Timeout-Ms") != "1235" || r.Header.Get("X-Access-Token") != sandboxiotest.Token {
			t.Errorf("headers: %v", r.Header)
		}
		if starts.Add(1) < 3 {
			panic(http.ErrAbortHandler)
		}
		stream(w, started(t), exited(t, 0, true, ""), framed(2, []byte("{}")))
	})
	d, err := sandboxio.Seconds(1.2341)
	if err != nil {
		t.Fatal(err)
	}
	req := shell("true")
	req.Timeout = d
	if res, err := svc.Exec(t.Context(), principal.System("test"), targets.Sandbox, req); err != nil || res.ExitCode != 0 || starts.Load() != 3 {
		t.Errorf("got %+v, %v after %d starts", res, err, starts.Load())
	}
}

func TestLL08_AHostileFilesystemIsBounded(t *testing.T) {
	answer := func(m proto.Message) http.HandlerFunc {
		raw, err := proto.Marshal(m)
		if err != nil {
			t.Fatal(err)
		}
		return func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Type", "application/proto")
			_, _ = w.Write(raw)
		}
	}
	by := principal.System("test")
	t.Run("more than 64 MiB", func(t *testing.T) {
		svc, targets := scripted(t, sandboxio.Options{}, func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Type", "application/proto")
			_, _ = io.Copy(w, io.LimitReader(zeros{}, 70<<20))
		})
		if _, err := svc.ListFiles(t.Context(), by, targets.Sandbox, at("x"), 1, page.Request{Limit: 1}); !errs.Is(err, "too_many_entries") {
			t.Errorf("got %v", err)
		}
	})
	t.Run("too many entries", func(t *testing.T) {
		res := &fspb.ListDirResponse{}
		for range 100_001 {
			res.Entries = append(res.Entries, &fspb.EntryInfo{Path: "/a"})
		}
		svc, targets := scripted(t, sandboxio.Options{}, answer(res))
		if _, err := svc.ListFiles(t.Context(), by, targets.Sandbox, at("x"), 1, page.Request{Limit: 1}); !errs.Is(err, "too_many_entries") {
			t.Errorf("got %v", err)
		}
	})
	t.Run("entries that share a path", func(t *testing.T) {
		res := &fspb.ListDirResponse{}
		for range 7 {
			res.Entries = append(res.Entries, &fspb.EntryInfo{Path: "/a", Name: "a"})
		}
		svc, targets := scripted(t, sandboxio.Options{}, answer(res))
		n, req := 0, page.Request{Limit: 2}
		for pages := 0; pages < 10; pages++ {
			p, err := svc.ListFiles(t.Context(), by, targets.Sandbox, at("x"), 1, req)
			if err != nil {
				t.Fatal(err)
			}
			n += len(p.Items)
			if req.Cursor = p.NextCursor; req.Cursor == "" {
				break
			}
		}
		if n != 7 {
			t.Errorf("%d of 7 entries", n)
		}
	})
	t.Run("an entry of nonsense", func(t *testing.T) {
		e := &fspb.EntryInfo{
			Path: "/a", Name: "a", Size: -5, Permissions: strings.Repeat("r", 5000) + "\n", Owner: "\x1b[31m",
			ModifiedTime: &timestamppb.Timestamp{Seconds: math.MaxInt64, Nanos: -1},
		}
		svc, targets := scripted(t, sandboxio.Options{}, answer(&fspb.StatResponse{Entry: e}))
		got, err := svc.StatFile(t.Context(), by, targets.Sandbox, at("x"))
		if err != nil || got.Size != 0 || len(got.Mode) > 400 || strings.Contains(got.Owner, "\x1b") || got.ModifiedAt.Year() != 1970 {
			t.Errorf("got %+v, %v", got, err)
		}
	})
	t.Run("a full disk", func(t *testing.T) {
		svc, targets := scripted(t, sandboxio.Options{}, func(w http.ResponseWriter, r *http.Request) {
			_, _ = io.Copy(io.Discard, r.Body)
			w.WriteHeader(http.StatusInsufficientStorage)
			_, _ = io.Copy(w, io.LimitReader(zeros{}, 1<<20))
		})
		_, err := svc.UploadFile(t.Context(), by, targets.Sandbox, at("x"), strings.NewReader("x"), 1)
		if !errs.Is(err, "disk_full") || errs.CodeOf(err) != errs.CodeExhausted {
			t.Errorf("got %v", err)
		}
	})
	t.Run("a packed download", func(t *testing.T) {
		svc, targets := scripted(t, sandboxio.Options{}, func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Encoding", "gzip")
			fmt.Fprint(w, "bomb")
		})
		if _, err := svc.DownloadFile(t.Context(), by, targets.Sandbox, at("x"), sandboxio.Conditions{}); !errs.Is(err, "sandbox_misbehaves") {
			t.Errorf("got %v", err)
		}
	})
}
