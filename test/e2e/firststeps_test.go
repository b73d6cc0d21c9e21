package e2e

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"hash"
	"io"
	"math/rand/v2"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"
)

// The first thing anybody does: create, run, read 42, delete, nothing left.
func TestS1_CreateExecDelete(t *testing.T) {
	in := skerry(t)
	in.noTraces(t)
	before := in.keeps(t)

	var made sandbox
	in.Must(t, "POST", "/v1/sandboxes", map[string]any{"template": "base"}, &made)
	if made.Status != "running" || made.Engine != "gvisor" {
		t.Fatalf("created %+v, want a running gvisor sandbox", made)
	}
	var result execResult
	in.Must(t, "POST", "/v1/sandboxes/"+made.ID+"/exec", map[string]any{"cmd": "python3", "args": []string{"-c", "print(6*7)"}}, &result)
	if result.Stdout != "42\n" || result.ExitCode != 0 {
		t.Errorf("python3 -c 'print(6*7)' gave %+v, want 42", result)
	}
	if len(in.traces(t)) == 0 {
		t.Error("a running sandbox left no trace: the leak check looks in the wrong place")
	}
	in.Must(t, "DELETE", "/v1/sandboxes/"+made.ID, nil, nil)
	in.Must(t, "DELETE", "/v1/sandboxes/"+made.ID, nil, nil)
	in.noTraces(t)
	in.sameMachine(t, before, warm)

	var after sandbox
	in.Must(t, "GET", "/v1/sandboxes/"+made.ID, nil, &after)
	if after.Status != "stopped" || after.EndReason != "deleted" {
		t.Errorf("after the delete it is %q because of %q, want stopped, deleted", after.Status, after.EndReason)
	}
}

// A large file goes up and comes down equal, and nobody holds it in memory.
func TestFI02_LargeFileInFlatMemory(t *testing.T) {
	in := skerry(t)
	size := int64(scaled(500, 100)) << 20
	box := in.Create(t, nil)
	in.Sh(t, box.ID, "true")
	before := in.anonymousMemory(t)
	peak := in.watchMemory(t)

	where := "/v1/sandboxes/" + box.ID + "/files?path=" + url.QueryEscape("/home/user/large.bin")
	sent := sha256.New()
	source := io.TeeReader(io.LimitReader(rand.NewChaCha8([32]byte{7}), size), sent)
	req, err := in.Request(t.Context(), "PUT", where, source)
	if err != nil {
		t.Fatal(err)
	}
	req.ContentLength = size
	res, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	answer, _ := io.ReadAll(res.Body)
	res.Body.Close()
	if res.StatusCode != 200 {
		t.Fatalf("upload: %d %s", res.StatusCode, answer)
	}
	inside := in.Sh(t, box.ID, "sha256sum /home/user/large.bin; stat -c '%s %U' /home/user/large.bin")
	if want := fmt.Sprintf("%s  /home/user/large.bin\n%d user\n", sum(sent), size); inside.Stdout != want {
		t.Errorf("inside it is %q, want %q", inside.Stdout, want)
	}

	req, err = in.Request(t.Context(), "GET", where, nil)
	if err != nil {
		t.Fatal(err)
	}
	res, err = http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	got := sha256.New()
	n, err := io.Copy(got, res.Body)
	res.Body.Close()
	if err != nil || n != size || sum(got) != sum(sent) {
		t.Errorf("download: %d bytes, %v, hashes equal: %v", n, err, sum(got) == sum(sent))
	}

	for name, high := range peak() {
		if grown := high - before[name]; grown > 64<<20 {
			t.Errorf("%s grew by %d MiB, want at most 64", name, grown>>20)
		} else {
			t.Logf("%s grew by %.1f MiB", name, float64(grown)/(1<<20))
		}
	}
}

func sum(h hash.Hash) string { return hex.EncodeToString(h.Sum(nil)) }

// anonymousMemory is the memory of each process of ours that is not page cache,
// by name and pid.
func (in *machine) anonymousMemory(t testing.TB) map[string]int64 {
	t.Helper()
	usage := map[string]int64{}
	entries, err := os.ReadDir("/proc")
	if err != nil {
		t.Fatal(err)
	}
	for _, entry := range entries {
		dir := filepath.Join("/proc", entry.Name())
		cmdline, err := os.ReadFile(filepath.Join(dir, "cmdline"))
		if err != nil || len(cmdline) == 0 {
			continue
		}
		environ, _ := os.ReadFile(filepath.Join(dir, "environ"))
		if !bytes.Contains(cmdline, []byte(in.Data)) && !bytes.Contains(environ, []byte("SKERRY_DATA="+in.Data)) {
			continue
		}
		status, err := os.ReadFile(filepath.Join(dir, "status"))
		if err != nil {
			continue
		}
		var anonymous int64
		for line := range strings.Lines(string(status)) {
			if rest, ok := strings.CutPrefix(line, "RssAnon:"); ok {
				kib, _ := strconv.ParseInt(strings.Fields(rest)[0], 10, 64)
				anonymous = kib << 10
			}
		}
		words := strings.Split(string(cmdline), "\x00")
		usage[filepath.Base(words[0])+" "+strings.Join(words[1:min(len(words), 2)], " ")+" ("+entry.Name()+")"] = anonymous
	}
	return usage
}

// watchMemory samples until the returned function is called, which gives the
// highest reading of each process.
func (in *machine) watchMemory(t testing.TB) func() map[string]int64 {
	ctx, cancel := context.WithCancel(context.Background())
	highest := map[string]int64{}
	var wg sync.WaitGroup
	wg.Add(1)
	go func() {
		defer wg.Done()
		ticker := time.NewTicker(100 * time.Millisecond)
		defer ticker.Stop()
		for {
			for name, value := range in.anonymousMemory(t) {
				highest[name] = max(highest[name], value)
			}
			select {
			case <-ctx.Done():
				return
			case <-ticker.C:
			}
		}
	}()
	return func() map[string]int64 {
		cancel()
		wg.Wait()
		return highest
	}
}

// Many at once: every create and its command succeed, deletes are quick, and
// nothing stays.
func TestLL01_ManyCreatesAndDeletes(t *testing.T) {
	in := skerry(t)
	in.noTraces(t)
	before := in.keeps(t)
	const width = 10
	count := scaled(100, 20)

	ids := make([]string, count)
	var wg sync.WaitGroup
	gate := make(chan struct{}, width)
	failures := make(chan error, count)
	for i := range count {
		wg.Add(1)
		gate <- struct{}{}
		go func() {
			defer func() { <-gate; wg.Done() }()
			var made sandbox
			// A hundred of the default size do not fit on two cores and a small disk.
			small := map[string]any{"template": "base", "vcpus": 0.5, "disk_mb": 256}
			if _, err := in.Try(t.Context(), "POST", "/v1/sandboxes", small, &made); err != nil {
				failures <- err
				return
			}
			ids[i] = made.ID
			var result execResult
			_, err := in.Try(t.Context(), "POST", "/v1/sandboxes/"+made.ID+"/exec", map[string]any{"cmd": fmt.Sprintf("echo %d", i)}, &result)
			if err != nil || result.Stdout != fmt.Sprintf("%d\n", i) {
				failures <- fmt.Errorf("command %d: %+v %v", i, result, err)
			}
		}()
	}
	wg.Wait()
	close(failures)
	for err := range failures {
		t.Error(err)
	}

	if at := slices.Index(ids, ""); at >= 0 {
		t.Fatalf("sandbox %d was not made", at)
	}
	// The last one stays to the end. A command in it after each delete tells what
	// the machine is worth at these moments.
	witness := ids[count-1]
	timed := func(method, path string, body any) time.Duration {
		start := time.Now()
		in.Must(t, method, path, body, nil)
		return time.Since(start)
	}
	var deletes, commands []time.Duration
	for _, id := range ids[:count-1] {
		deletes = append(deletes, timed("DELETE", "/v1/sandboxes/"+id, nil))
		commands = append(commands, timed("POST", "/v1/sandboxes/"+witness+"/exec", map[string]any{"cmd": "true", "args": []string{}}))
	}
	in.Must(t, "DELETE", "/v1/sandboxes/"+witness, nil, nil)
	slices.Sort(deletes)
	slices.Sort(commands)
	median, command := deletes[len(deletes)/2], commands[len(commands)/2]
	t.Logf("%d deletes: median %s, highest %s; a command: median %s", len(deletes), median, deletes[len(deletes)-1], command)
	// What is promised is 150 ms. A machine of half the speed, whose two cores
	// others keep busy, may need as much for no fault of a delete's; but it needs
	// longer for a command as well. Where the promise was made a command takes 15
	// ms, so that 150 ms are ten commands there, and ten commands are the promise
	// on any machine: a delete takes 2.5 to 2.7 on a quiet one, 3.4 with both cores
	// taken, 5.3 with twenty waiting for them. The full run is for machines that
	// keep the plain promise.
	if median > 150*time.Millisecond && (scaled(1, 0) == 1 || median > 10*command) {
		t.Errorf("the median delete took %s, want at most 150ms or 10 commands of %s", median, command)
	}
	in.noTraces(t)
	in.sameMachine(t, before, width+warm)
}
