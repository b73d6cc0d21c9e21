// Command guest is PID 1 of the instances the conformance suite starts: a
// static program that is the whole root tree, and does over HTTP what a test
// asks for.
package main

import (
	"bufio"
	"crypto/rand"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"
)

func main() {
	if len(os.Args) > 1 && os.Args[1] == "sleep" {
		select {}
	}
	if len(os.Args) > 1 && os.Args[1] == "exit" {
		code, _ := strconv.Atoi(os.Args[2])
		os.Exit(code)
	}
	stdin, _ := io.ReadAll(os.Stdin)
	fmt.Println("guest is up")
	if err := http.ListenAndServe(":7000", handler(string(stdin))); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func handler(stdin string) http.Handler {
	var mu sync.Mutex
	var kept string    // what /keep was given
	var hoard [][]byte // what /alloc took
	mux := http.NewServeMux()
	answer := func(pattern string, f func(r *http.Request) (any, error)) {
		mux.HandleFunc(pattern, func(w http.ResponseWriter, r *http.Request) {
			mu.Lock()
			defer mu.Unlock()
			v, err := f(r)
			if err != nil {
				http.Error(w, err.Error(), http.StatusInternalServerError)
				return
			}
			_ = json.NewEncoder(w).Encode(v)
		})
	}
	answer("/info", func(*http.Request) (any, error) {
		host, _ := os.Hostname()
		var st syscall.Statfs_t
		_ = syscall.Statfs("/", &st)
		var shm syscall.Statfs_t
		_ = syscall.Statfs("/dev/shm", &shm)
		return map[string]any{
			"pid": os.Getpid(), "uid": os.Getuid(), "hostname": host, "stdin": stdin, "env": os.Environ(), "args": os.Args,
			"cpus": runtime.NumCPU(), "mem_kb": meminfo("MemTotal"), "disk": int64(st.Blocks) * st.Bsize, "shm": int64(shm.Blocks) * shm.Bsize,
			"caps": status("CapEff"),
		}, nil
	})
	answer("/exit", func(r *http.Request) (any, error) {
		code, _ := strconv.Atoi(r.FormValue("code"))
		os.Exit(code)
		return nil, nil
	})
	answer("/keep", func(r *http.Request) (any, error) {
		old := kept
		if r.Method == http.MethodPost {
			b, err := io.ReadAll(r.Body)
			kept = string(b)
			return old, err
		}
		return old, nil
	})
	answer("/alloc", func(r *http.Request) (any, error) {
		n, err := strconv.Atoi(r.FormValue("bytes"))
		for n > 0 && err == nil {
			b := make([]byte, min(n, 16<<20))
			for i := range b { // nothing a disk or a checkpoint could spare itself
				b[i] = byte(i*7 + i>>8 + len(hoard))
			}
			hoard = append(hoard, b)
			n -= len(b)
		}
		return len(hoard), err
	})
	answer("/file", func(r *http.Request) (any, error) {
		if r.Method == http.MethodPost {
			f, err := os.Create(r.FormValue("path"))
			if err != nil {
				return nil, err
			}
			defer f.Close()
			n, err := io.Copy(f, r.Body)
			return n, err
		}
		b, err := os.ReadFile(r.FormValue("path"))
		return string(b), err
	})
	answer("/truncate", func(r *http.Request) (any, error) {
		size, err := strconv.ParseInt(r.FormValue("bytes"), 10, 64)
		if err != nil {
			return nil, err
		}
		return nil, os.Truncate(r.FormValue("path"), size)
	})
	answer("/xattr", func(r *http.Request) (any, error) {
		return nil, syscall.Setxattr(r.FormValue("path"), r.FormValue("name"), []byte(r.FormValue("value")), 0)
	})
	var disk writer
	answer("/write", func(*http.Request) (any, error) { return nil, disk.start() })
	answer("/written", func(*http.Request) (any, error) { return disk.safe() })
	answer("/stopwriting", func(*http.Request) (any, error) { return disk.end() })
	answer("/verify", func(*http.Request) (any, error) { return verify() })
	var open sockets
	answer("/dial", func(r *http.Request) (any, error) { return nil, open.dial(r.FormValue("addr")) })
	answer("/dialled", func(*http.Request) (any, error) { return open.state(), nil })
	answer("/listen", func(r *http.Request) (any, error) {
		port, err := strconv.Atoi(r.FormValue("port"))
		if err != nil {
			return nil, err
		}
		return nil, open.listen(port)
	})
	answer("/echo", func(r *http.Request) (any, error) {
		port, err := strconv.Atoi(r.FormValue("port"))
		if err != nil {
			return nil, err
		}
		return nil, open.echo(port)
	})
	answer("/churn", func(r *http.Request) (any, error) {
		pause, err := time.ParseDuration(r.FormValue("pause"))
		if err != nil {
			return nil, err
		}
		open.churn(r.FormValue("addr"), pause)
		return nil, nil
	})
	answer("/time", func(*http.Request) (any, error) { return time.Now().UnixNano(), nil })
	answer("/random", func(*http.Request) (any, error) { return rand.Text(), nil })
	answer("/spawn", func(r *http.Request) (any, error) {
		cmd := exec.Command("/guest", "sleep")
		err := cmd.Start()
		if err != nil {
			return nil, err
		}
		return cmd.Process.Pid, nil
	})
	answer("/say", func(r *http.Request) (any, error) {
		n, err := strconv.Atoi(r.FormValue("bytes"))
		if err != nil {
			return nil, err
		}
		_, err = fmt.Fprintln(os.Stdout, strings.Repeat("x", n))
		return n, err
	})
	mux.HandleFunc("/hang", func(w http.ResponseWriter, r *http.Request) {
		w.WriteHeader(http.StatusOK)
		_ = http.NewResponseController(w).Flush()
		<-r.Context().Done()
	})
	return mux
}

func meminfo(name string) int64 {
	n, _ := strconv.ParseInt(strings.Fields(line("/proc/meminfo", name) + " 0")[0], 10, 64)
	return n
}

func status(name string) string { return strings.TrimSpace(line("/proc/self/status", name)) }

func line(path, name string) string {
	f, err := os.Open(path)
	if err != nil {
		return ""
	}
	defer f.Close()
	for s := bufio.NewScanner(f); s.Scan(); {
		if rest, ok := strings.CutPrefix(s.Text(), name+":"); ok {
			return rest
		}
	}
	return ""
}
