package journal

import (
	"encoding/json"
	"fmt"
	"time"

	bolt "go.etcd.io/bbolt"

	"skerry.dev/skerry/internal/kernel/id"
)

// Begin records a create before its first effect.
func (j *Journal) Begin(rec Record) error {
	return j.do(func(t *tx) error { return t.put(rec) })
}

// Mark notes the last step a create finished. It reaches the disk with the
// next transaction and costs none of its own.
func (j *Journal) Mark(sandbox id.Sandbox, step string) {
	j.mu.Lock()
	defer j.mu.Unlock()
	j.marks[sandbox] = step
}

// Running records that a create succeeded, or that a record changed while the
// sandbox runs.
func (j *Journal) Running(rec Record, events ...Event) error {
	return j.save(rec, events)
}

// Exited records that the sandbox ended by itself.
func (j *Journal) Exited(rec Record, events ...Event) error {
	return j.save(rec, events)
}

// Pausing records that a pause begins, before the guest notices anything.
func (j *Journal) Pausing(rec Record) error { return j.save(rec, nil) }

// Paused records that the sandbox is a saved state from here on; also that it
// is one again.
func (j *Journal) Paused(rec Record, events ...Event) error { return j.save(rec, events) }

// SetDeadlines changes the deadlines of those that are here in exactly that
// incarnation, in one transaction, and skips the others.
func (j *Journal) SetDeadlines(list []Deadline) error {
	return j.do(func(t *tx) error {
		for _, d := range list {
			rec, ok, err := t.record(d.Sandbox)
			if err != nil {
				return err
			}
			if !ok || rec.Spec.Incarnation != d.Incarnation || rec.Deadline.Equal(d.At) {
				continue
			}
			rec.Deadline = d.At
			if err := t.put(rec); err != nil {
				return err
			}
		}
		return nil
	})
}

// Record returns what is known of one sandbox.
func (j *Journal) Record(sandbox id.Sandbox) (rec Record, ok bool, err error) {
	err = j.view(func(btx *bolt.Tx) error {
		rec, ok, err = (&tx{sandboxes: btx.Bucket(bucketSandboxes())}).record(sandbox)
		return err
	})
	return rec, ok, err
}

// save replaces a record, but for what has verbs of its own.
func (j *Journal) save(rec Record, events []Event) error {
	return j.do(func(t *tx) error {
		old, ok, err := t.record(rec.Spec.Sandbox)
		if err != nil {
			return err
		}
		if ok && old.Instance == rec.Instance {
			rec.GuestSeq, rec.Deadline = max(rec.GuestSeq, old.GuestSeq), old.Deadline
		}
		if err := t.put(rec); err != nil {
			return err
		}
		return t.emit(events...)
	})
}

// Destroying records that rec is to go before anything of it is touched, with
// the tombstone of rec.DestroyIncarnation where that is not zero (the undo of
// a failed create leaves none: the same create may be tried again).
func (j *Journal) Destroying(rec Record, at time.Time) error {
	return j.do(func(t *tx) error {
		if rec.DestroyIncarnation > 0 {
			if err := t.bury(rec.Spec.Sandbox, rec.DestroyIncarnation, at); err != nil {
				return err
			}
		}
		return t.put(rec)
	})
}

// Bury writes the tombstone of a sandbox that is not here.
func (j *Journal) Bury(sandbox id.Sandbox, incarnation uint64, at time.Time) error {
	return j.do(func(t *tx) error { return t.bury(sandbox, incarnation, at) })
}

// Remove forgets a sandbox of which nothing is left. It does not wait for the
// disk: a crash before that only repeats a destroy that finds nothing, and
// every later verb is written after it.
func (j *Journal) Remove(sandbox id.Sandbox, events ...Event) error {
	_, err := j.enqueue(func(t *tx) error {
		if err := t.sandboxes.Delete(sandboxKey(sandbox)); err != nil {
			return err
		}
		return t.emit(events...)
	})
	return err
}

// GuestEvent puts a guest's event into the outbox and remembers guestSeq as
// seen, in one transaction, so that none is told twice after a restart. The
// event of a sandbox that is no longer running in that incarnation is dropped.
func (j *Journal) GuestEvent(guestSeq int64, e Event) error {
	return j.do(func(t *tx) error {
		rec, ok, err := t.record(e.Sandbox)
		if err != nil {
			return err
		}
		if !ok || rec.Spec.Incarnation != e.Incarnation || rec.GuestSeq >= guestSeq {
			return nil
		}
		rec.GuestSeq = guestSeq
		if err := t.put(rec); err != nil {
			return err
		}
		return t.emit(e)
	})
}

// Records returns all sandboxes of this host.
func (j *Journal) Records() ([]Record, error) {
	var out []Record
	err := j.view(func(btx *bolt.Tx) error {
		return btx.Bucket(bucketSandboxes()).ForEach(func(k, raw []byte) error {
			var rec Record
			if err := json.Unmarshal(raw, &rec); err != nil {
				return fmt.Errorf("record %x: %w", k, err)
			}
			out = append(out, rec)
			return nil
		})
	})
	return out, err
}

// Buried returns the highest destroyed incarnation of a sandbox, 0 for none.
func (j *Journal) Buried(sandbox id.Sandbox) (uint64, error) {
	var stone Tombstone
	err := j.view(func(btx *bolt.Tx) error {
		raw := btx.Bucket(bucketTombstones()).Get(sandboxKey(sandbox))
		if raw == nil {
			return nil
		}
		return json.Unmarshal(raw, &stone)
	})
	return stone.Incarnation, err
}

// Prune removes tombstones from before the given time.
func (j *Journal) Prune(before time.Time) (int, error) {
	removed := 0
	err := j.do(func(t *tx) error {
		removed = 0
		var old [][]byte
		err := t.tombstones.ForEach(func(k, raw []byte) error {
			var stone Tombstone
			if err := json.Unmarshal(raw, &stone); err != nil {
				return fmt.Errorf("tombstone %x: %w", k, err)
			}
			if stone.At.Before(before) {
				old = append(old, append([]byte(nil), k...))
			}
			return nil
		})
		if err != nil {
			return err
		}
		for _, k := range old {
			if err := t.tombstones.Delete(k); err != nil {
				return err
			}
		}
		removed = len(old)
		return nil
	})
	return removed, err
}

// Events returns the oldest unconfirmed events, at most limit.
func (j *Journal) Events(limit int) ([]Event, error) {
	var out []Event
	err := j.view(func(btx *bolt.Tx) error {
		c := btx.Bucket(bucketOutbox()).Cursor()
		for k, raw := c.First(); k != nil && len(out) < limit; k, raw = c.Next() {
			var e Event
			if err := json.Unmarshal(raw, &e); err != nil {
				return fmt.Errorf("event %d: %w", number(k), err)
			}
			out = append(out, e)
		}
		return nil
	})
	return out, err
}

// Confirm removes the events up to and including seq.
func (j *Journal) Confirm(seq uint64) error {
	return j.do(func(t *tx) error {
		for {
			k, _ := t.outbox.Cursor().First()
			if k == nil || number(k) > seq {
				return nil
			}
			if err := t.outbox.Delete(k); err != nil {
				return err
			}
		}
	})
}

// Dropped counts the events that a full outbox lost since the journal exists.
func (j *Journal) Dropped() (uint64, error) {
	var n uint64
	err := j.view(func(btx *bolt.Tx) error {
		n = number(btx.Bucket(bucketMeta()).Get([]byte("dropped")))
		return nil
	})
	return n, err
}

// Wake receives after events were added. It is a hint: several events may
// give one.
func (j *Journal) Wake() <-chan struct{} { return j.wake }

func (j *Journal) view(read func(*bolt.Tx) error) error {
	if err := j.db.View(read); err != nil {
		return fmt.Errorf("journal: %w", err)
	}
	return nil
}
