package journal

import (
	"encoding/json"
	"errors"
	"fmt"

	bolt "go.etcd.io/bbolt"

	"skerry.dev/skerry/internal/agent/engine"
)

// Warm is an instance that waits for a sandbox. Its record is that of a sandbox
// without one: creating, warm or destroying.
type Warm struct {
	// Key is by which the control plane knows what it waits for.
	Key []byte `json:"key"`
	// Build names all programs it was made with; one of other programs is of no use.
	Build  string `json:"build"`
	Record Record `json:"record"`
}

// ErrNotWarm: the instance is not one that waits.
var ErrNotWarm = errors.New("journal: no such warm instance")

// KeepWarm records an instance before its first effect, once it is ready, and
// before it is let go.
func (j *Journal) KeepWarm(w Warm) error {
	return j.do(func(t *tx) error {
		raw, err := json.Marshal(w)
		if err != nil {
			return err
		}
		return t.warm.Put([]byte(w.Record.Instance), raw)
	})
}

// Claim makes a warm instance that of the sandbox of rec, which is being
// created: from here on it is one thing or the other, never both. ErrNotWarm
// changes nothing.
func (j *Journal) Claim(rec Record) error {
	claimed := false
	err := j.do(func(t *tx) error {
		raw := t.warm.Get([]byte(rec.Instance))
		if claimed = raw != nil; !claimed {
			return nil
		}
		if err := t.warm.Delete([]byte(rec.Instance)); err != nil {
			return err
		}
		return t.put(rec)
	})
	if err == nil && !claimed {
		err = ErrNotWarm
	}
	return err
}

// ForgetWarm forgets an instance of which nothing is left. As Remove it does not
// wait for the disk.
func (j *Journal) ForgetWarm(instance engine.InstanceID) error {
	_, err := j.enqueue(func(t *tx) error { return t.warm.Delete([]byte(instance)) })
	return err
}

// Warm returns all of them.
func (j *Journal) Warm() ([]Warm, error) {
	var out []Warm
	err := j.view(func(btx *bolt.Tx) error {
		return btx.Bucket(bucketWarm()).ForEach(func(k, raw []byte) error {
			var w Warm
			if err := json.Unmarshal(raw, &w); err != nil {
				return fmt.Errorf("warm instance %s: %w", k, err)
			}
			out = append(out, w)
			return nil
		})
	})
	return out, err
}
