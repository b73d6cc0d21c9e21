package journal

import (
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"time"

	bolt "go.etcd.io/bbolt"
	berrors "go.etcd.io/bbolt/errors"

	"skerry.dev/skerry/internal/kernel/id"
)

const (
	// DefaultOutboxSize is how many unconfirmed events are kept.
	DefaultOutboxSize = 10_000
	// TombstoneAge is the least time a tombstone is kept.
	TombstoneAge = 30 * 24 * time.Hour

	lockTimeout = 250 * time.Millisecond
	maxGroup    = 256 // verbs in one transaction
	format      = 1
)

// ErrLocked: another agent uses this data directory.
var ErrLocked = errors.New("journal: another agent uses this data directory; stop it, or give this one a data directory of its own")

// ErrClosed: the journal was closed.
var ErrClosed = errors.New("journal: closed")

// Journal is safe for concurrent use. Verbs about one sandbox are called one
// at a time by their owner.
type Journal struct {
	db         *bolt.DB
	outboxSize uint64
	generation uint64

	queue  chan *write
	stop   chan struct{}
	closed sync.Once
	writer sync.WaitGroup
	wake   chan struct{}

	mu    sync.Mutex
	marks map[id.Sandbox]string // steps finished, not yet on disk
}

type write struct {
	apply func(*tx) error
	done  chan error // capacity 1
}

// tx is one transaction with the buckets at hand.
type tx struct {
	meta, sandboxes, tombstones, outbox, warm *bolt.Bucket
	outboxSize                                uint64
	events                                    bool
}

func bucketMeta() []byte       { return []byte("meta") }
func bucketSandboxes() []byte  { return []byte("sandboxes") }
func bucketTombstones() []byte { return []byte("tombstones") }
func bucketOutbox() []byte     { return []byte("outbox") }
func bucketWarm() []byte       { return []byte("warm") }

// Open opens or creates the journal at path and starts a new generation. The
// outbox keeps at most outboxSize events; 0 is DefaultOutboxSize.
func Open(path string, outboxSize int) (*Journal, error) {
	if outboxSize <= 0 {
		outboxSize = DefaultOutboxSize
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return nil, fmt.Errorf("journal: %w", err)
	}
	// The free list is rebuilt at open instead of being written with each
	// transaction, which makes the transaction one page smaller.
	db, err := bolt.Open(path, 0o600, &bolt.Options{Timeout: lockTimeout, NoFreelistSync: true, FreelistType: bolt.FreelistMapType})
	if errors.Is(err, berrors.ErrTimeout) {
		return nil, ErrLocked
	}
	if err != nil {
		return nil, fmt.Errorf("journal: open %s: %w", path, err)
	}
	j := &Journal{
		db: db, outboxSize: uint64(outboxSize),
		queue: make(chan *write, maxGroup), stop: make(chan struct{}),
		wake: make(chan struct{}, 1), marks: make(map[id.Sandbox]string),
	}
	if err := db.Update(j.begin); err != nil {
		return nil, errors.Join(fmt.Errorf("journal: open %s: %w", path, err), db.Close())
	}
	j.writer.Go(j.write)
	return j, nil
}

func (j *Journal) begin(btx *bolt.Tx) error {
	for _, name := range [][]byte{bucketMeta(), bucketSandboxes(), bucketTombstones(), bucketOutbox(), bucketWarm()} {
		if _, err := btx.CreateBucketIfNotExists(name); err != nil {
			return err
		}
	}
	meta := btx.Bucket(bucketMeta())
	if got := number(meta.Get([]byte("format"))); got > format {
		return fmt.Errorf("written by a newer agent (format %d, this one knows %d): install that version again", got, format)
	}
	if err := meta.Put([]byte("format"), key(format)); err != nil {
		return err
	}
	// By the clock, so that a journal that begins anew, or came back from a
	// backup, repeats no generation under which events were stored before; by the
	// former one, so that a clock set back does not either.
	j.generation = max(number(meta.Get([]byte("generation")))+1, uint64(max(time.Now().Unix(), 0)))
	return meta.Put([]byte("generation"), key(j.generation))
}

// Generation grows with each opening, also when the file was lost in between.
// It is at least the time of the opening in Unix seconds.
func (j *Journal) Generation() uint64 { return j.generation }

// Close writes what was queued and closes the file. Later verbs fail with
// ErrClosed.
func (j *Journal) Close() error {
	var err error
	j.closed.Do(func() {
		close(j.stop)
		j.writer.Wait()
		err = j.db.Close()
	})
	return err
}

// do queues apply and waits until it is on disk.
func (j *Journal) do(apply func(*tx) error) error {
	w, err := j.enqueue(apply)
	if err != nil {
		return err
	}
	select {
	case err := <-w.done:
		return err
	case <-j.stop:
		j.writer.Wait()
		select {
		case err := <-w.done:
			return err
		default:
			return ErrClosed
		}
	}
}

func (j *Journal) enqueue(apply func(*tx) error) (*write, error) {
	w := &write{apply: apply, done: make(chan error, 1)}
	select {
	case <-j.stop:
		return nil, ErrClosed
	default:
	}
	select {
	case j.queue <- w:
		return w, nil
	case <-j.stop:
		return nil, ErrClosed
	}
}

// write is the one writer: it takes all that is queued into one transaction.
func (j *Journal) write() {
	for {
		select {
		case w := <-j.queue:
			j.commit(j.gather(w))
		case <-j.stop:
			select {
			case w := <-j.queue:
				j.commit(j.gather(w))
			default:
				return
			}
		}
	}
}

func (j *Journal) gather(first *write) []*write {
	group := []*write{first}
	for len(group) < maxGroup {
		select {
		case w := <-j.queue:
			group = append(group, w)
		default:
			return group
		}
	}
	return group
}

func (j *Journal) commit(group []*write) {
	events := false
	err := j.db.Update(func(btx *bolt.Tx) error {
		t := &tx{
			meta: btx.Bucket(bucketMeta()), sandboxes: btx.Bucket(bucketSandboxes()),
			tombstones: btx.Bucket(bucketTombstones()), outbox: btx.Bucket(bucketOutbox()),
			warm: btx.Bucket(bucketWarm()), outboxSize: j.outboxSize,
		}
		if err := j.writeMarks(t); err != nil {
			return err
		}
		for _, w := range group {
			if err := w.apply(t); err != nil {
				return err
			}
		}
		events = t.events
		return nil
	})
	if err != nil {
		err = fmt.Errorf("journal: %w", err)
	}
	for _, w := range group {
		w.done <- err
	}
	if err == nil && events {
		select {
		case j.wake <- struct{}{}:
		default:
		}
	}
}

// writeMarks carries finished steps along with a transaction that is written
// anyway. They are for people who read the journal after a crash; recovery
// undoes a create the same way wherever it stood.
func (j *Journal) writeMarks(t *tx) error {
	j.mu.Lock()
	marks := j.marks
	j.marks = make(map[id.Sandbox]string)
	j.mu.Unlock()
	for sandbox, step := range marks {
		rec, ok, err := t.record(sandbox)
		if err != nil {
			return err
		}
		if !ok || rec.Phase != PhaseCreating {
			continue
		}
		rec.Step = step
		if err := t.put(rec); err != nil {
			return err
		}
	}
	return nil
}

func (t *tx) record(sandbox id.Sandbox) (Record, bool, error) {
	raw := t.sandboxes.Get(sandboxKey(sandbox))
	if raw == nil {
		return Record{}, false, nil
	}
	var rec Record
	if err := json.Unmarshal(raw, &rec); err != nil {
		return Record{}, false, fmt.Errorf("record of %s: %w", sandbox, err)
	}
	return rec, true, nil
}

func (t *tx) put(rec Record) error {
	raw, err := json.Marshal(rec)
	if err != nil {
		return err
	}
	return t.sandboxes.Put(sandboxKey(rec.Spec.Sandbox), raw)
}

func (t *tx) bury(sandbox id.Sandbox, incarnation uint64, at time.Time) error {
	var old Tombstone
	if raw := t.tombstones.Get(sandboxKey(sandbox)); raw != nil {
		if err := json.Unmarshal(raw, &old); err != nil {
			return fmt.Errorf("tombstone of %s: %w", sandbox, err)
		}
	}
	raw, err := json.Marshal(Tombstone{Incarnation: max(incarnation, old.Incarnation), At: at})
	if err != nil {
		return err
	}
	return t.tombstones.Put(sandboxKey(sandbox), raw)
}

// emit appends events; past the outbox's size the oldest go and are counted.
func (t *tx) emit(events ...Event) error {
	for _, e := range events {
		seq, err := t.outbox.NextSequence()
		if err != nil {
			return err
		}
		e.Seq = seq
		raw, err := json.Marshal(e)
		if err != nil {
			return err
		}
		if err := t.outbox.Put(key(seq), raw); err != nil {
			return err
		}
		t.events = true
		first, _ := t.outbox.Cursor().First()
		if seq-number(first)+1 > t.outboxSize {
			if err := t.outbox.Delete(first); err != nil {
				return err
			}
			dropped := number(t.meta.Get([]byte("dropped"))) + 1
			if err := t.meta.Put([]byte("dropped"), key(dropped)); err != nil {
				return err
			}
		}
	}
	return nil
}

func sandboxKey(s id.Sandbox) []byte {
	u := s.UUID()
	return u[:]
}

func key(n uint64) []byte { return binary.BigEndian.AppendUint64(nil, n) }

func number(b []byte) uint64 {
	if len(b) != 8 {
		return 0
	}
	return binary.BigEndian.Uint64(b)
}
