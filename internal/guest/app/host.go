package app

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strconv"
	"time"

	"skerry.dev/skerry/internal/guest/fence"
	"skerry.dev/skerry/internal/guest/filesystem"
	"skerry.dev/skerry/internal/guest/guestapi"
)

const (
	initMax       = 4 << 20
	eventsSilence = 30 * time.Second
	dialTimeout   = 5 * time.Second
)

// handleInit takes a configuration. One that is older than the last is
// answered like any other and changes nothing.
func (d *Daemon) handleInit(w http.ResponseWriter, r *http.Request) {
	var in guestapi.Init
	if err := json.NewDecoder(http.MaxBytesReader(w, r.Body, initMax)).Decode(&in); err != nil && err != io.EOF {
		filesystem.WriteError(w, http.StatusBadRequest, "malformed configuration: "+err.Error())
		return
	}
	if len(in.VolumeMounts) > 0 {
		filesystem.WriteError(w, http.StatusNotImplemented, "volumes are mounted from outside the sandbox")
		return
	}
	d.initMu.Lock()
	defer d.initMu.Unlock()
	if !d.fromHost(r) { // the secret was replaced while this call waited
		filesystem.WriteError(w, http.StatusUnauthorized, "this path is the host's alone")
		return
	}
	replaces := in.NewInitSecret != "" && !sameSecret(in.NewInitSecret, *d.secret.Load())
	if last := d.current.Load(); last != nil && !replaces && !in.Timestamp.IsZero() && in.Timestamp.Before(last.Timestamp) {
		w.WriteHeader(http.StatusNoContent)
		return
	}
	if d.opt.Report != nil {
		if err := d.opt.Report(in); err != nil {
			d.log.Error("the configuration could not be kept", "error", err)
			// A restarted daemon would come up with the configuration before this one.
			// The host sends it again then, so this one still serves, but for a secret
			// that would be the old one again.
			if replaces {
				filesystem.WriteError(w, http.StatusInternalServerError, "the new secret could not be kept")
				return
			}
		}
	}
	if err := d.apply(r.Context(), in); err != nil {
		d.log.Error("the configuration could not be applied in full", "error", err)
	}
	w.WriteHeader(http.StatusNoContent)
}

// apply makes in the configuration. The daemon's own part always takes effect.
// ctx is that of the call it came by, whose connection stays.
func (d *Daemon) apply(ctx context.Context, in guestapi.Init) error {
	if in.NewInitSecret != "" {
		d.setSecret(in.NewInitSecret)
	}
	old := d.current.Swap(&in)
	if old != nil && old.LifecycleID != in.LifecycleID {
		d.conns.closeBut(ctx)
		d.events.Forget()
	}
	if old == nil || old.LifecycleID != in.LifecycleID {
		d.metrics.reset()
		d.active.touch()
	}
	var fenced, applied error
	if d.opt.Fence != nil {
		fenced = d.opt.Fence.Limit(fence.Tasks(in.MaxProcesses))
	}
	if d.opt.Machine != nil {
		applied = d.opt.Machine.Apply(in)
	}
	return errors.Join(fenced, applied)
}

func (d *Daemon) handleEnvs(w http.ResponseWriter, _ *http.Request) {
	env := d.config().EnvVars
	if env == nil {
		env = map[string]string{}
	}
	writeJSON(w, env)
}

func writeJSON(w http.ResponseWriter, v any) {
	w.Header().Set("Content-Type", "application/json")
	_ = json.NewEncoder(w).Encode(v)
}

// handleEvents streams events for as long as the host listens.
func (d *Daemon) handleEvents(w http.ResponseWriter, r *http.Request) {
	after, err := strconv.ParseInt(r.URL.Query().Get("after"), 10, 64)
	if err != nil && r.URL.Query().Get("after") != "" {
		filesystem.WriteError(w, http.StatusBadRequest, "after must be the number of an event")
		return
	}
	w.Header().Set("Content-Type", "application/x-ndjson")
	out, enc := http.NewResponseController(w), json.NewEncoder(w)
	silence := time.NewTimer(eventsSilence)
	defer silence.Stop()
	for {
		events, more := d.events.Since(after)
		for _, e := range events {
			if enc.Encode(e) != nil {
				return
			}
			after = e.Seq
		}
		if out.Flush() != nil {
			return
		}
		silence.Reset(eventsSilence)
		select {
		case <-more:
		case <-silence.C:
			if _, err := io.WriteString(w, "\n"); err != nil {
				return
			}
		case <-r.Context().Done():
			return
		case <-d.closing:
			return
		}
	}
}

// handleTunnel joins the connection with a listener on the sandbox's loopback.
func (d *Daemon) handleTunnel(w http.ResponseWriter, r *http.Request) {
	port, err := strconv.ParseUint(r.URL.Query().Get("port"), 10, 16)
	if err != nil || port == 0 {
		filesystem.WriteError(w, http.StatusBadRequest, "port must be a number from 1 to 65535")
		return
	}
	if r.ProtoMajor != 1 || r.Header.Get("Upgrade") != guestapi.TunnelProtocol {
		filesystem.WriteError(w, http.StatusUpgradeRequired, "ask for an upgrade to "+guestapi.TunnelProtocol+" over HTTP/1.1")
		return
	}
	// Not the request's context: that ends when the caller has sent all it has
	// to say, and the answer is still wanted.
	inner, err := net.DialTimeout("tcp", fmt.Sprintf("127.0.0.1:%d", port), dialTimeout)
	if err != nil {
		inner, err = net.DialTimeout("tcp", fmt.Sprintf("[::1]:%d", port), dialTimeout)
	}
	if err != nil {
		filesystem.WriteError(w, http.StatusBadGateway, fmt.Sprintf("nothing listens on port %d", port))
		return
	}
	outer, buffered, err := http.NewResponseController(w).Hijack()
	if err != nil {
		inner.Close()
		filesystem.WriteError(w, http.StatusInternalServerError, "the connection cannot be taken over")
		return
	}
	_ = outer.SetDeadline(time.Time{})
	_, err = io.WriteString(outer, "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: "+guestapi.TunnelProtocol+"\r\n\r\n")
	if err != nil {
		inner.Close()
		outer.Close()
		return
	}
	defer d.active.use()()
	d.tunnels.Add(1)
	defer d.tunnels.Done()
	join(outer, buffered, inner, d.closing)
}

// join copies both ways until both sides have ended, passing on each end, or
// until closing.
func join(outer net.Conn, buffered io.Reader, inner net.Conn, closing <-chan struct{}) {
	defer outer.Close()
	defer inner.Close()
	done := make(chan struct{}, 2)
	half := func(dst net.Conn, src io.Reader) {
		_, err := io.Copy(dst, src)
		if c, ok := dst.(interface{ CloseWrite() error }); ok && err == nil {
			_ = c.CloseWrite()
		} else {
			dst.Close()
		}
		done <- struct{}{}
	}
	go half(inner, buffered)
	go half(outer, inner)
	for range 2 {
		select {
		case <-done:
		case <-closing:
			outer.Close()
			inner.Close()
			<-done
		}
	}
}
