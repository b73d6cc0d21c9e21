package identity

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"skerry.dev/skerry/internal/kernel/id"
)

// Credentials are what the control plane gave this host.
type Credentials struct {
	HostID           id.Host   `json:"host_id"`
	HostJWT          string    `json:"host_jwt"`
	HostJWTExpiresAt time.Time `json:"host_jwt_expires_at"`
	RefreshToken     string    `json:"refresh_token"`
	Certificate      string    `json:"certificate"` // PEM
	CA               string    `json:"ca"`          // PEM, the platform's CA

	// ObtainedAt is this host's clock when the answer came.
	ObtainedAt time.Time `json:"obtained_at"`
	// TokenHash is the SHA-256, hex, of the registration token they were got
	// with; a different token asks for a new registration.
	TokenHash string `json:"token_hash"`
}

// Registered returns whom the credentials in dir are of, zero where there are
// none. It changes nothing.
func Registered(dir string) (id.Host, error) {
	c, _, err := store{dir: dir}.load()
	return c.HostID, err
}

// Installation returns the SHA-256, hex, of the CA whose credentials are in dir,
// empty where there are none. It changes nothing.
func Installation(dir string) (string, error) {
	c, ok, err := store{dir: dir}.load()
	if err != nil || !ok {
		return "", err
	}
	ca, err := parseCertificate(c.CA)
	if err != nil {
		return "", fmt.Errorf("identity: the CA in %s: %w", dir, err)
	}
	return fingerprint(ca), nil
}

// Drop removes the credentials and the key in dir, so that the next agent there
// joins as a machine that never did. No agent may run there, or it must start anew
// afterwards. Repeating it changes nothing.
func Drop(dir string) error {
	s := store{dir: dir}
	if _, err := os.Stat(dir); errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return s.remove(s.credentialsPath(), s.keyPath())
}

// store keeps key and credentials in one directory, mode 0700.
type store struct {
	dir  string
	step func(Step)
}

func (s store) keyPath() string         { return filepath.Join(s.dir, "host.key") }
func (s store) credentialsPath() string { return filepath.Join(s.dir, "credentials.json") }

// tidy removes what a write that was cut short left.
func (s store) tidy() error {
	left, err := filepath.Glob(filepath.Join(s.dir, unfinished+"*"))
	for _, path := range left {
		err = errors.Join(err, os.Remove(path))
	}
	if err != nil {
		return fmt.Errorf("identity: %w", err)
	}
	return nil
}

// key returns the host's key and makes it on the first call. It is on disk
// before it is returned.
func (s store) key() (*ecdsa.PrivateKey, error) {
	raw, err := os.ReadFile(s.keyPath())
	if err == nil {
		return parseKey(raw)
	}
	if !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("identity: %w", err)
	}
	k, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, fmt.Errorf("identity: %w", err)
	}
	der, err := x509.MarshalPKCS8PrivateKey(k)
	if err != nil {
		return nil, fmt.Errorf("identity: %w", err)
	}
	if err := WriteDurably(s.keyPath(), pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der})); err != nil {
		return nil, err
	}
	s.step(StepKeyKept)
	return k, nil
}

func parseKey(raw []byte) (*ecdsa.PrivateKey, error) {
	block, _ := pem.Decode(raw)
	if block == nil {
		return nil, errors.New("identity: the host key is not PEM; move it away and register the host again")
	}
	parsed, err := x509.ParsePKCS8PrivateKey(block.Bytes)
	if err != nil {
		return nil, fmt.Errorf("identity: host key: %w", err)
	}
	k, ok := parsed.(*ecdsa.PrivateKey)
	if !ok {
		return nil, fmt.Errorf("identity: the host key is a %T, not ECDSA", parsed)
	}
	return k, nil
}

// load returns the credentials; false when there are none.
func (s store) load() (c Credentials, ok bool, err error) {
	ok, err = read(s.credentialsPath(), &c)
	return c, ok, err
}

func (s store) save(c Credentials) error { return write(s.credentialsPath(), c, s.step) }

// read fills v from a file; false when there is none.
func read(path string, v any) (bool, error) {
	raw, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("identity: %w", err)
	}
	if err := json.Unmarshal(raw, v); err != nil {
		return false, fmt.Errorf("identity: %s: %w", path, err)
	}
	return true, nil
}

func write(path string, v any, step func(Step)) error {
	raw, err := json.MarshalIndent(v, "", "  ")
	if err != nil {
		return fmt.Errorf("identity: %w", err)
	}
	return writeDurably(path, raw, step)
}

// remove removes files for good; none is no fault.
func (s store) remove(paths ...string) error {
	for _, path := range paths {
		if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("identity: %w", err)
		}
	}
	return syncDir(s.dir)
}

// unfinished begins the names of files that are not yet what they will be.
const unfinished = ".new-"

// WriteDurably replaces a file with one readable by its owner alone; after a
// crash at any point there is the old content or the new one.
func WriteDurably(path string, content []byte) error {
	return writeDurably(path, content, func(Step) {})
}

func writeDurably(path string, content []byte, step func(Step)) error {
	dir := filepath.Dir(path)
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return fmt.Errorf("identity: %w", err)
	}
	f, err := os.CreateTemp(dir, unfinished+"*") // mode 0600
	if err != nil {
		return fmt.Errorf("identity: %w", err)
	}
	_, err = f.Write(content)
	if err == nil {
		step(StepWritten)
		err = f.Sync()
	}
	if err = errors.Join(err, f.Close()); err == nil {
		step(StepSynced)
		err = os.Rename(f.Name(), path)
	}
	if err != nil {
		return fmt.Errorf("identity: %w", errors.Join(err, os.Remove(f.Name())))
	}
	step(StepRenamed)
	return syncDir(dir)
}

func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return fmt.Errorf("identity: %w", err)
	}
	if err := errors.Join(d.Sync(), d.Close()); err != nil {
		return fmt.Errorf("identity: %w", err)
	}
	return nil
}
