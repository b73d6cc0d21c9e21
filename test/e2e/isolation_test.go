package e2e

import (
	"encoding/json"
	"fmt"
	"net"
	"net/url"
	"os"
	"strings"
	"testing"
	"time"

	"skerry.dev/skerry/internal/testkit"
)

// reach tries TCP connections from inside, all at once, and prints those that
// came about.
const reach = `import concurrent.futures,socket,sys
def connect(target):
    host,port=target.rsplit(":",1)
    try:
        socket.create_connection((host,int(port)),timeout=3).close()
        return target
    except OSError:
        return ""
with concurrent.futures.ThreadPoolExecutor(32) as pool:
    print("\n".join(filter(None,pool.map(connect,sys.argv[1:]))))`

func (in *machine) reach(t *testing.T, id string, targets ...string) []string {
	t.Helper()
	var result execResult
	in.Must(t, "POST", "/v1/sandboxes/"+id+"/exec", map[string]any{"cmd": "python3", "args": append([]string{"-c", reach}, targets...)}, &result)
	if result.ExitCode != 0 {
		t.Fatalf("the check itself failed: %+v", result)
	}
	return strings.Fields(result.Stdout)
}

// From inside there is no way to the host, other sandboxes, private networks or
// metadata addresses.
func TestNW01_NoWayToTheInside(t *testing.T) {
	in := skerry(t)
	box, other := in.Create(t, nil), in.Create(t, nil)

	// What listens on every address of the host must stay out of reach.
	listener, err := net.Listen("tcp", "0.0.0.0:0")
	if err != nil {
		t.Fatal(err)
	}
	defer listener.Close()
	go func() {
		for {
			conn, err := listener.Accept()
			if err != nil {
				return
			}
			conn.Close()
		}
	}()
	_, port, _ := net.SplitHostPort(listener.Addr().String())
	api, _ := url.Parse(in.URL)

	gateway := strings.TrimSpace(in.Sh(t, box.ID, `awk '/nameserver/{print $2}' /etc/resolv.conf`).Stdout)
	neighbour := strings.TrimSpace(in.Sh(t, other.ID, `hostname -I 2>/dev/null || python3 -c 'import socket;s=socket.socket(socket.AF_INET,socket.SOCK_DGRAM);s.connect(("1.1.1.1",53));print(s.getsockname()[0])'`).Stdout)
	if gateway == "" || neighbour == "" {
		t.Fatalf("gateway %q, neighbour %q: cannot look", gateway, neighbour)
	}
	targets := []string{
		gateway + ":" + port, gateway + ":" + api.Port(), gateway + ":5432", gateway + ":22", neighbour + ":49983",
		"169.254.169.254:80", "10.0.0.1:80", "192.168.0.1:80", "172.16.0.1:80", "100.64.0.1:80",
	}
	addresses, _ := net.InterfaceAddrs()
	for _, address := range addresses {
		if ip, _, err := net.ParseCIDR(address.String()); err == nil && ip.To4() != nil && !ip.IsLoopback() {
			targets = append(targets, ip.String()+":"+port)
		}
	}
	// The same program does connect where it may: the check can fail.
	own := "127.0.0.1:49983"
	if got := in.reach(t, box.ID, append(targets, own)...); len(got) != 1 || got[0] != own {
		t.Errorf("of %v it reached %v, want %s alone", targets, got, own)
	}
}

// Memory runs out inside: the process ends, the sandbox goes on, and an event
// says so.
func TestS15_OutOfMemoryEndsTheProcessOnly(t *testing.T) {
	in := skerry(t)
	box := in.Create(t, map[string]any{"memory_mb": 256})
	before := in.Sh(t, box.ID, "cat /proc/sys/kernel/random/boot_id").Stdout
	hog := in.Sh(t, box.ID, `python3 -c 'x=[]
while True: x.append(bytearray(4<<20))'`)
	if hog.ExitCode == 0 {
		t.Errorf("the hog ended with 0: %+v", hog)
	}
	if after := in.Sh(t, box.ID, "cat /proc/sys/kernel/random/boot_id").Stdout; after != before {
		t.Errorf("boot id %q, was %q: it is another sandbox", after, before)
	}
	in.event(t, box.ID, "oom_kill")
}

// A fork bomb and a full disk hurt nobody but the sandbox they run in.
func TestS14_ForkBombAndFullDiskStayInside(t *testing.T) {
	in := skerry(t)
	neighbour := in.Create(t, nil)
	box := in.Create(t, map[string]any{"disk_mb": 256})

	full := in.Sh(t, box.ID, "dd if=/dev/zero of=/home/user/fill bs=1M count=1024")
	if full.ExitCode == 0 || !strings.Contains(full.Stderr, "No space left") {
		t.Errorf("filling the disk gave %+v, want no space left", full)
	}
	in.event(t, box.ID, "disk_full")
	if ok := in.Sh(t, box.ID, "rm /home/user/fill && echo freed"); ok.Stdout != "freed\n" {
		t.Errorf("after the disk was full: %+v", ok)
	}

	_, _ = in.Try(t.Context(), "POST", "/v1/sandboxes/"+box.ID+"/exec", map[string]any{"cmd": ":(){ :|:& };: ; sleep 5", "timeout_sec": 10}, nil)
	start := time.Now()
	if got := in.Sh(t, neighbour.ID, "echo fine"); got.Stdout != "fine\n" {
		t.Errorf("the neighbour says %+v", got)
	}
	t.Logf("the neighbour answered in %s", time.Since(start))
	in.event(t, box.ID, "process_limit")
	testkit.Eventually(t, 30*time.Second, "the sandbox with the bomb answers again", func() bool {
		var result execResult
		_, err := in.Try(t.Context(), "POST", "/v1/sandboxes/"+box.ID+"/exec", map[string]any{"cmd": "echo", "args": []string{"alive"}, "timeout_sec": 5}, &result)
		return err == nil && result.Stdout == "alive\n"
	})
}

// event waits until the sandbox's history has an event of the kind.
func (in *machine) event(t *testing.T, id, kind string) {
	t.Helper()
	testkit.Eventually(t, 30*time.Second, "an event "+kind, func() bool {
		var events struct{ Items []struct{ Kind string } }
		in.Must(t, "GET", "/v1/sandboxes/"+id+"/events?limit=200", nil, &events)
		for _, event := range events.Items {
			if event.Kind == kind {
				return true
			}
		}
		return false
	})
}

// Root inside is not root outside: which host uid and capabilities the
// processes of a sandbox have, one by one.
func TestLL09_RootInsideIsNobodyOutside(t *testing.T) {
	in := skerry(t)
	box := in.Create(t, nil)
	var who execResult
	in.Must(t, "POST", "/v1/sandboxes/"+box.ID+"/exec", map[string]any{"cmd": "id -u; grep CapBnd /proc/self/status", "user": "root"}, &who)
	if !strings.HasPrefix(who.Stdout, "0\n") {
		t.Fatalf("as root inside: %+v", who)
	}
	// CHOWN … AUDIT_WRITE: a stock container's set without raw sockets.
	if !strings.Contains(who.Stdout, "00000000280001fb") && !strings.Contains(who.Stdout, "00000000a80405fb") {
		t.Logf("bounding set inside: %s", who.Stdout)
	}
	sentries := 0
	for _, line := range in.traces(t) {
		var pid int
		if _, err := fmt.Sscanf(line, "process %d:", &pid); err != nil {
			continue
		}
		status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
		if err != nil {
			continue
		}
		fields := map[string]string{}
		for line := range strings.Lines(string(status)) {
			if key, value, ok := strings.Cut(line, ":"); ok {
				fields[key] = strings.Join(strings.Fields(value), " ")
			}
		}
		t.Logf("%s (%d): uid %s, effective capabilities %s, seccomp %s", fields["Name"], pid, fields["Uid"], fields["CapEff"], fields["Seccomp"])
		if strings.Contains(line, "runsc-sandbox") {
			sentries++
			if strings.HasPrefix(fields["Uid"], "0 ") || fields["Seccomp"] != "2" {
				t.Errorf("the sentry runs with uid %s, seccomp %s; want an unprivileged one with a filter", fields["Uid"], fields["Seccomp"])
			}
		}
	}
	if sentries == 0 {
		t.Error("no sentry found: the check looks in the wrong place")
	}
}

// The limits are what the guest sees.
func TestS14_LimitsAreWhatTheGuestSees(t *testing.T) {
	in := skerry(t)
	box := in.Create(t, map[string]any{"memory_mb": 300, "disk_mb": 512})
	seen := in.Sh(t, box.ID, `python3 - <<'P'
import os,json
mem=[int(l.split()[1]) for l in open('/proc/meminfo') if l.startswith('MemTotal')][0]
s=os.statvfs('/')
print(json.dumps({"mem":mem>>10,"disk":s.f_blocks*s.f_frsize>>20}))
P`)
	var limits struct{ Mem, Disk int }
	if err := json.Unmarshal([]byte(seen.Stdout), &limits); err != nil {
		t.Fatalf("%v in %+v", err, seen)
	}
	if limits.Mem < 270 || limits.Mem > 340 || limits.Disk < 500 || limits.Disk > 520 {
		t.Errorf("inside there are %d MB of memory and %d MB of disk, want 300 and 512", limits.Mem, limits.Disk)
	}
}
