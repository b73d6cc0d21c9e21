package keyring_test

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"encoding/base64"
	"encoding/hex"
	"fmt"
	"net"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/golang-jwt/jwt/v5"

	"skerry.dev/skerry/internal/control/keyring"
	"skerry.dev/skerry/internal/control/keyring/keyringpg"
	"skerry.dev/skerry/internal/kernel/clock"
	"skerry.dev/skerry/internal/kernel/errs"
	"skerry.dev/skerry/internal/kernel/id"
	"skerry.dev/skerry/internal/pg/pgtest"
)

func TestO6_SecretInEveryForm(t *testing.T) {
	raw := bytes.Repeat([]byte{0xfb}, 32)
	want := keyring.Secret{}
	for i, form := range []string{
		hex.EncodeToString(raw), base64.StdEncoding.EncodeToString(raw), base64.RawURLEncoding.EncodeToString(raw), " " + hex.EncodeToString(raw) + "\n",
	} {
		s, err := keyring.ParseSecret(form)
		if err != nil {
			t.Fatalf("%q: %v", form, err)
		}
		if i == 0 {
			want = s
		}
		if !bytes.Equal(s.Derive("test"), want.Derive("test")) {
			t.Errorf("%q is another secret", form)
		}
		if text := fmt.Sprintf("%v %+v %#v %s", s, s, s, s); strings.Contains(text, "fb") || strings.Contains(text, "251") {
			t.Errorf("the secret prints as %s", text)
		}
	}
	for _, bad := range []string{"", "short", strings.Repeat("a", 63), strings.Repeat("g", 64), hex.EncodeToString(raw) + "00"} {
		if _, err := keyring.ParseSecret(bad); !errs.Is(err, "invalid_secret") {
			t.Errorf("%q: %v", bad, err)
		}
	}
}

func TestSealedBoxesOpenOnlyWhereTheyBelong(t *testing.T) {
	secret, _ := keyring.NewSecret()
	other, _ := keyring.NewSecret()
	box := secret.Seal("env", []byte("plain"), []byte("row 1"))
	if plain, err := secret.Open("env", box, []byte("row 1")); err != nil || string(plain) != "plain" {
		t.Fatalf("open: %q, %v", plain, err)
	}
	if bytes.Contains(box, []byte("plain")) || bytes.Equal(box, secret.Seal("env", []byte("plain"), []byte("row 1"))) {
		t.Error("the box shows or repeats itself")
	}
	for name, open := range map[string]func() ([]byte, error){
		"purpose": func() ([]byte, error) { return secret.Open("other", box, []byte("row 1")) },
		"context": func() ([]byte, error) { return secret.Open("env", box, []byte("row 2")) },
		"secret":  func() ([]byte, error) { return other.Open("env", box, []byte("row 1")) },
		"short":   func() ([]byte, error) { return secret.Open("env", box[:20], []byte("row 1")) },
		"empty":   func() ([]byte, error) { return secret.Open("env", nil, []byte("row 1")) },
		"version": func() ([]byte, error) { return secret.Open("env", append([]byte{9}, box[1:]...), []byte("row 1")) },
	} {
		if _, err := open(); err == nil {
			t.Errorf("opened with another %s", name)
		}
	}
	if bytes.Equal(secret.Derive("p", []byte("ab"), []byte("c")), secret.Derive("p", []byte("a"), []byte("bc"))) {
		t.Error("parts run into each other")
	}
}

func TestKeysAreMadeOnceByManyServers(t *testing.T) {
	store := keyringpg.New(pgtest.New(t))
	secret, _ := keyring.NewSecret()
	rings := make([]*keyring.Keyring, 6)
	var wg sync.WaitGroup
	for i := range rings {
		wg.Go(func() {
			var err error
			if rings[i], err = keyring.Load(t.Context(), store, secret, clock.System{}); err != nil {
				t.Errorf("load: %v", err)
			}
		})
	}
	wg.Wait()
	if t.Failed() {
		t.FailNow()
	}
	token, _, err := rings[0].SignUser(keyring.UserClaims{User: id.NewUser(), Session: id.NewSession()})
	if err != nil {
		t.Fatal(err)
	}
	for i, ring := range rings {
		if ring.CASHA256() != rings[0].CASHA256() {
			t.Errorf("server %d has another CA", i)
		}
		if _, err := ring.VerifyUser(t.Context(), token); err != nil {
			t.Errorf("server %d: %v", i, err)
		}
	}
	if keys, err := store.Keys(t.Context()); err != nil || len(keys) != 4 {
		t.Errorf("%d keys (%v)", len(keys), err)
	}
	wrong, _ := keyring.NewSecret()
	if _, err := keyring.Load(t.Context(), store, wrong, clock.System{}); !errs.Is(err, "wrong_secret") {
		t.Errorf("another secret: %v", err)
	}
}

func load(t *testing.T) *keyring.Keyring {
	t.Helper()
	secret, _ := keyring.NewSecret()
	k, err := keyring.Load(t.Context(), keyringpg.New(pgtest.New(t)), secret, clock.System{})
	if err != nil {
		t.Fatal(err)
	}
	return k
}

func TestID09_TokensOfUsersAndHostsAreNotInterchangeable(t *testing.T) {
	k := load(t)
	user, _, err := k.SignUser(keyring.UserClaims{User: id.NewUser(), Session: id.NewSession()})
	if err != nil {
		t.Fatal(err)
	}
	claims := keyring.HostClaims{Host: id.NewHost(), Family: id.NewHostRefreshToken()}
	host, expires, err := k.SignHost(claims)
	if err != nil {
		t.Fatal(err)
	}
	if d := time.Until(expires); d < 7*24*time.Hour-time.Minute || d > 7*24*time.Hour {
		t.Errorf("a host's token lives %s", d)
	}
	if got, err := k.VerifyHost(t.Context(), host); err != nil || got != claims {
		t.Errorf("host: %+v, %v", got, err)
	}
	if _, err := k.VerifyUser(t.Context(), host); !errs.Is(err, "invalid_token") {
		t.Errorf("host's token as a user's: %v", err)
	}
	if _, err := k.VerifyHost(t.Context(), user); !errs.Is(err, "invalid_token") {
		t.Errorf("user's token as a host's: %v", err)
	}
}

func csr(t *testing.T, key any) []byte {
	t.Helper()
	der, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{DNSNames: []string{"evil.example.com"}}, key)
	if err != nil {
		t.Fatal(err)
	}
	return der
}

func TestH2_CertificatesNameWhatTheyAreFor(t *testing.T) {
	k := load(t)
	server, err := k.IssueServer([]string{"skerry.example.com"}, []net.IP{net.IPv4(127, 0, 0, 1)})
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"skerry.example.com", "127.0.0.1"} {
		if _, err := server.Leaf.Verify(x509.VerifyOptions{Roots: k.CAPool(), DNSName: name}); err != nil {
			t.Errorf("verify %s: %v", name, err)
		}
	}
	if server.Leaf.URIs[0].String() != keyring.ControlIdentity {
		t.Errorf("identity %v", server.Leaf.URIs)
	}
	if _, ok := keyring.HostOf(server.Leaf); ok {
		t.Error("the control plane passes for a host")
	}
	_, ed, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	ec, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	host := id.NewHost()
	for _, key := range []any{ed, ec} {
		cert, err := k.SignHostCertificate(host, csr(t, key))
		if err != nil {
			t.Fatal(err)
		}
		if got, ok := keyring.HostOf(cert); !ok || got != host || len(cert.DNSNames) != 0 || cert.IsCA {
			t.Errorf("host %v, names %v", got, cert.DNSNames)
		}
		for _, usage := range []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth} {
			if _, err := cert.Verify(x509.VerifyOptions{Roots: k.CAPool(), KeyUsages: []x509.ExtKeyUsage{usage}}); err != nil {
				t.Errorf("verify: %v", err)
			}
		}
		if d := time.Until(cert.NotAfter); d < 7*24*time.Hour-time.Minute || d > 7*24*time.Hour {
			t.Errorf("lives %s", d)
		}
	}
	weak, err := rsa.GenerateKey(rand.Reader, 1024)
	if err != nil {
		t.Fatal(err)
	}
	forged := csr(t, ec)
	forged[len(forged)-1] ^= 1
	for name, request := range map[string][]byte{"rsa": csr(t, weak), "junk": []byte("x"), "forged": forged, "none": nil} {
		if _, err := k.SignHostCertificate(host, request); errs.CodeOf(err) != errs.CodeInvalid {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// What an agent checks that holds the CA alone: the signature, the typ, the
// installation and the host.
func TestH11_TheStatementAboutADeletedHostIsSignedByTheCA(t *testing.T) {
	k := load(t)
	gone := id.NewHost()
	statement, err := k.SignHostDeleted(gone)
	if err != nil {
		t.Fatal(err)
	}
	claims := jwt.RegisteredClaims{}
	token, err := jwt.NewParser(jwt.WithValidMethods([]string{"ES256"}), jwt.WithIssuedAt()).ParseWithClaims(statement, &claims, func(*jwt.Token) (any, error) {
		return k.CA().PublicKey, nil
	})
	if err != nil || token.Header["typ"] != keyring.HostDeletedType || token.Header["kid"] != nil {
		t.Fatalf("%v (%v)", token, err)
	}
	if claims.Subject != gone.String() || claims.Issuer != k.CASHA256() || claims.ExpiresAt != nil || time.Since(claims.IssuedAt.Time) > time.Minute {
		t.Errorf("%+v", claims)
	}
	// It is no token for anything else.
	if _, err := k.VerifyHost(t.Context(), statement); errs.CodeOf(err) != errs.CodeUnauthenticated {
		t.Errorf("as a host's token: %v", err)
	}
	if _, err := k.VerifyUser(t.Context(), statement); errs.CodeOf(err) != errs.CodeUnauthenticated {
		t.Errorf("as a user's token: %v", err)
	}
}
