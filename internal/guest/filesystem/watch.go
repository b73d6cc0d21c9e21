package filesystem

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"time"

	"connectrpc.com/connect"
	"github.com/fsnotify/fsnotify"
	"github.com/google/uuid"

	pb "skerry.dev/skerry/gen/guestrpc/filesystem"
	"skerry.dev/skerry/internal/guest/guestapi"
)

const (
	watchersMax      = 256
	watchDirsMax     = 20_000
	watchQueue       = 8192
	keepaliveDefault = 90 * time.Second
)

// errOverflow says that events came faster than they were taken.
var errOverflow = errors.New("events were lost: they came faster than they were read; list the directory and watch again")

// watch follows one directory. Its events queue up to watchQueue; then the
// watch is over, since a gap nobody sees is worse than an end.
type watch struct {
	s         *Service
	root      string
	recursive bool
	entries   bool
	inner     *fsnotify.Watcher
	done      chan struct{}
	ready     chan struct{} // holds a token when there is something to take

	mu     sync.Mutex
	queue  []*pb.FilesystemEvent
	err    error
	dirs   int
	polled time.Time
}

func (s *Service) watch(ctx context.Context, path string, recursive, entries bool) (*watch, error) {
	root, _, err := s.target(ctx, path)
	if err != nil {
		return nil, rpcError(err, path)
	}
	fi, err := os.Stat(root)
	if err == nil && !fi.IsDir() {
		err = fail(kindInvalid, "path '%s' is not a directory", root)
	}
	if err != nil {
		return nil, rpcError(err, root)
	}
	inner, err := fsnotify.NewBufferedWatcher(512)
	if err != nil {
		return nil, connect.NewError(connect.CodeResourceExhausted, err)
	}
	w := &watch{
		s: s, root: root, recursive: recursive, entries: entries, inner: inner,
		done: make(chan struct{}), ready: make(chan struct{}, 1), polled: time.Now(),
	}
	if err := w.add(root, false); err != nil {
		inner.Close()
		return nil, rpcError(err, root)
	}
	s.mu.Lock()
	s.active[w] = struct{}{}
	s.mu.Unlock()
	go w.run()
	return w, nil
}

// wrote tells the watches that an upload gave path new content. The kernel saw
// only a rename, which alone would look like a new file.
func (s *Service) wrote(path string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for w := range s.active {
		dir := filepath.Dir(path)
		if dir == w.root || (w.recursive && (w.root == "/" || strings.HasPrefix(dir, w.root+"/"))) {
			w.push(path, pb.EventType_EVENT_TYPE_WRITE)
		}
	}
}

// add watches dir, and with recursion all below it. In a directory that
// appeared while watching, what is already there is announced: it may have
// come before the watch did.
func (w *watch) add(dir string, announce bool) error {
	if w.dirs >= watchDirsMax {
		return fail(kindTooMany, "more than %d directories to watch", watchDirsMax)
	}
	if err := w.inner.Add(dir); err != nil {
		return err
	}
	w.dirs++
	if !w.recursive {
		return nil
	}
	entries, err := os.ReadDir(dir)
	if err != nil {
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		return err
	}
	for _, d := range entries {
		p := filepath.Join(dir, d.Name())
		if announce {
			w.push(p, pb.EventType_EVENT_TYPE_CREATE)
		}
		if d.IsDir() {
			if err := w.add(p, announce); err != nil && !errors.Is(err, fs.ErrNotExist) {
				return err
			}
		}
	}
	return nil
}

func (w *watch) run() {
	defer close(w.done)
	for {
		select {
		case e, ok := <-w.inner.Events:
			if !ok {
				return
			}
			w.event(e)
		case err, ok := <-w.inner.Errors:
			if !ok {
				return
			}
			if errors.Is(err, fsnotify.ErrEventOverflow) {
				err = errOverflow
			}
			w.stop(err)
		}
	}
}

func (w *watch) event(e fsnotify.Event) {
	for _, known := range []struct {
		op fsnotify.Op
		as pb.EventType
	}{
		{fsnotify.Create, pb.EventType_EVENT_TYPE_CREATE},
		{fsnotify.Write, pb.EventType_EVENT_TYPE_WRITE},
		{fsnotify.Remove, pb.EventType_EVENT_TYPE_REMOVE},
		{fsnotify.Rename, pb.EventType_EVENT_TYPE_RENAME},
		{fsnotify.Chmod, pb.EventType_EVENT_TYPE_CHMOD},
	} {
		if e.Has(known.op) {
			w.push(e.Name, known.as)
		}
	}
	switch {
	case e.Has(fsnotify.Create) && w.recursive:
		if fi, err := os.Lstat(e.Name); err == nil && fi.IsDir() {
			if err := w.add(e.Name, true); err != nil && !errors.Is(err, fs.ErrNotExist) {
				w.stop(err)
			}
		}
	case e.Has(fsnotify.Rename) && w.recursive:
		_ = w.inner.Remove(e.Name) // a directory that moved away is not ours any more
	}
}

func (w *watch) push(path string, kind pb.EventType) {
	name, err := filepath.Rel(w.root, path)
	if err != nil || strings.HasPrefix(filepath.Base(path), tempPrefix) {
		return // the daemon's own unfinished uploads are nobody's business
	}
	e := &pb.FilesystemEvent{Name: text(name), Type: kind}
	if w.entries && kind != pb.EventType_EVENT_TYPE_REMOVE && kind != pb.EventType_EVENT_TYPE_RENAME {
		if info, err := w.s.entry(path); err == nil {
			e.Entry = info
		}
	}
	w.mu.Lock()
	full := len(w.queue) >= watchQueue
	if !full {
		w.queue = append(w.queue, e)
	}
	w.mu.Unlock()
	if full {
		w.stop(errOverflow)
		return
	}
	w.signal()
}

func (w *watch) signal() {
	select {
	case w.ready <- struct{}{}:
	default:
	}
}

func (w *watch) stop(err error) {
	w.mu.Lock()
	if w.err == nil {
		w.err = err
	}
	w.mu.Unlock()
	w.signal()
}

// take returns all queued events; an error only when there are none left.
func (w *watch) take() ([]*pb.FilesystemEvent, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.polled = time.Now()
	q := w.queue
	w.queue = nil
	if len(q) == 0 && w.err != nil {
		return nil, connect.NewError(connect.CodeResourceExhausted, w.err)
	}
	return q, nil
}

func (w *watch) close() {
	w.s.mu.Lock()
	delete(w.s.active, w)
	w.s.mu.Unlock()
	w.inner.Close()
	<-w.done
}

// WatchDir streams events until the caller leaves; `start` comes when the watch
// is in place.
func (s *Service) WatchDir(ctx context.Context, req *pb.WatchDirRequest, out *connect.ServerStream[pb.WatchDirResponse]) error {
	w, err := s.watch(ctx, req.GetPath(), req.GetRecursive(), req.GetIncludeEntry())
	if err != nil {
		return err
	}
	defer w.close()
	if err := out.Send(&pb.WatchDirResponse{Event: &pb.WatchDirResponse_Start{Start: &pb.WatchDirResponse_StartEvent{}}}); err != nil {
		return err
	}
	idle := keepalive(ctx)
	timer := time.NewTimer(idle)
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-timer.C:
			if err := out.Send(&pb.WatchDirResponse{Event: &pb.WatchDirResponse_Keepalive{Keepalive: &pb.WatchDirResponse_KeepAlive{}}}); err != nil {
				return err
			}
		case <-w.ready:
			for {
				events, err := w.take()
				if err != nil {
					return err
				}
				if len(events) == 0 {
					break
				}
				for _, e := range events {
					if err := out.Send(&pb.WatchDirResponse{Event: &pb.WatchDirResponse_Filesystem{Filesystem: e}}); err != nil {
						return err
					}
				}
			}
		}
		timer.Reset(idle)
	}
}

func keepalive(ctx context.Context) time.Duration {
	if info, ok := connect.CallInfoForHandlerContext(ctx); ok {
		n, err := strconv.Atoi(info.RequestHeader().Get(guestapi.HeaderKeepalive))
		if err == nil && n > 0 && n <= 3600 {
			return time.Duration(n) * time.Second
		}
	}
	return keepaliveDefault
}

// watchers are those that clients poll. When there are too many, the one that
// was not asked for the longest time gives way.
type watchers struct {
	mu  sync.Mutex
	all map[string]*watch
}

func newWatchers() *watchers { return &watchers{all: make(map[string]*watch)} }

func (ws *watchers) put(w *watch) string {
	id := uuid.NewString()
	ws.mu.Lock()
	var oldest string
	if len(ws.all) >= watchersMax {
		for id, o := range ws.all {
			if oldest == "" || o.lastPoll().Before(ws.all[oldest].lastPoll()) {
				oldest = id
			}
		}
	}
	evicted := ws.all[oldest]
	delete(ws.all, oldest)
	ws.all[id] = w
	ws.mu.Unlock()
	if evicted != nil {
		evicted.close()
	}
	return id
}

func (w *watch) lastPoll() time.Time {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.polled
}

func (ws *watchers) get(id string) (*watch, error) {
	ws.mu.Lock()
	defer ws.mu.Unlock()
	if w, ok := ws.all[id]; ok {
		return w, nil
	}
	return nil, connect.NewError(connect.CodeNotFound, errors.New("watcher with id "+text(id)+" not found"))
}

func (ws *watchers) remove(id string) {
	ws.mu.Lock()
	w := ws.all[id]
	delete(ws.all, id)
	ws.mu.Unlock()
	if w != nil {
		w.close()
	}
}

func (ws *watchers) close() {
	ws.mu.Lock()
	all := ws.all
	ws.all = make(map[string]*watch)
	ws.mu.Unlock()
	for _, w := range all {
		w.close()
	}
}

// CreateWatcher begins a watch that is polled.
func (s *Service) CreateWatcher(ctx context.Context, req *pb.CreateWatcherRequest) (*pb.CreateWatcherResponse, error) {
	w, err := s.watch(ctx, req.GetPath(), req.GetRecursive(), req.GetIncludeEntry())
	if err != nil {
		return nil, err
	}
	return &pb.CreateWatcherResponse{WatcherId: s.watchers.put(w)}, nil
}

// GetWatcherEvents returns what happened since the last call.
func (s *Service) GetWatcherEvents(_ context.Context, req *pb.GetWatcherEventsRequest) (*pb.GetWatcherEventsResponse, error) {
	w, err := s.watchers.get(req.GetWatcherId())
	if err != nil {
		return nil, err
	}
	events, err := w.take()
	if err != nil {
		return nil, err
	}
	return &pb.GetWatcherEventsResponse{Events: events}, nil
}

// RemoveWatcher ends a polled watch; silent when it is gone.
func (s *Service) RemoveWatcher(_ context.Context, req *pb.RemoveWatcherRequest) (*pb.RemoveWatcherResponse, error) {
	s.watchers.remove(req.GetWatcherId())
	return &pb.RemoveWatcherResponse{}, nil
}
