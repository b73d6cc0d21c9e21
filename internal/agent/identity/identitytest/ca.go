// Package identitytest is a platform for tests: a certificate authority and a
// control plane that registers hosts, renews them and takes what they send.
package identitytest

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/hex"
	"encoding/pem"
	"math/big"
	"net"
	"net/url"
	"testing"
	"time"

	"github.com/golang-jwt/jwt/v5"

	"skerry.dev/skerry/internal/agent/identity"
	"skerry.dev/skerry/internal/kernel/id"
)

// CA signs certificates like the platform's.
type CA struct {
	t    testing.TB
	key  *ecdsa.PrivateKey
	cert *x509.Certificate
}

// NewCA makes an authority.
func NewCA(t testing.TB) *CA {
	t.Helper()
	key := newKey(t)
	tmpl := &x509.Certificate{
		SerialNumber: serial(t), Subject: pkix.Name{CommonName: "Test CA"},
		NotBefore: time.Now().Add(-24 * time.Hour), NotAfter: time.Now().Add(24 * time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
	}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return &CA{t: t, key: key, cert: cert}
}

// Pin is the SHA-256 that an install command carries.
func (c *CA) Pin() string {
	sum := sha256.Sum256(c.cert.Raw)
	return hex.EncodeToString(sum[:])
}

// PEM is the authority's certificate.
func (c *CA) PEM() string { return toPEM(c.cert.Raw) }

// Pool trusts the authority alone.
func (c *CA) Pool() *x509.CertPool {
	p := x509.NewCertPool()
	p.AddCert(c.cert)
	return p
}

// Sign makes a certificate for a public key that names uri and is valid until
// notAfter.
func (c *CA) Sign(pub crypto.PublicKey, uri string, notAfter time.Time) []byte {
	c.t.Helper()
	u, err := url.Parse(uri)
	if err != nil {
		c.t.Fatal(err)
	}
	der, err := x509.CreateCertificate(rand.Reader, &x509.Certificate{
		SerialNumber: serial(c.t), URIs: []*url.URL{u}, IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: notAfter, KeyUsage: x509.KeyUsageDigitalSignature,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
	}, c.cert, pub, c.key)
	if err != nil {
		c.t.Fatal(err)
	}
	return der
}

// Certificate makes a key and a certificate that names uri, with the authority
// in the chain.
func (c *CA) Certificate(uri string, notAfter time.Time) tls.Certificate {
	c.t.Helper()
	key := newKey(c.t)
	return tls.Certificate{
		Certificate: [][]byte{c.Sign(&key.PublicKey, uri, notAfter), c.cert.Raw}, PrivateKey: key,
	}
}

// ClientConfig is the control plane's TLS towards an agent, which must name
// hostURI; cert is what it presents, none when it is empty.
func (c *CA) ClientConfig(cert tls.Certificate, hostURI string, protos ...string) *tls.Config {
	cfg := &tls.Config{
		MinVersion: tls.VersionTLS13, RootCAs: c.Pool(), ServerName: "127.0.0.1", NextProtos: protos,
		InsecureSkipVerify: true, //nolint:gosec // VerifyConnection does it by URI
		VerifyConnection: func(s tls.ConnectionState) error {
			leaf := s.PeerCertificates[0]
			if _, err := leaf.Verify(x509.VerifyOptions{Roots: c.Pool()}); err != nil {
				return err
			}
			if len(leaf.URIs) != 1 || leaf.URIs[0].String() != hostURI {
				return &tls.CertificateVerificationError{UnverifiedCertificates: s.PeerCertificates}
			}
			return nil
		},
	}
	if len(cert.Certificate) > 0 {
		// Presented whatever the server says it accepts.
		cfg.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return &cert, nil }
	}
	return cfg
}

// Statement is the platform's word that a host was deleted; change may spoil
// it before it is signed.
func (c *CA) Statement(host id.Host, change ...func(*jwt.Token)) string {
	c.t.Helper()
	token := jwt.NewWithClaims(jwt.SigningMethodES256, jwt.MapClaims{
		"iss": c.Pin(), "sub": id.FormatHost(host), "iat": time.Now().Unix(),
	})
	token.Header["typ"] = "skerry-host-deleted"
	for _, f := range change {
		f(token)
	}
	signed, err := token.SignedString(c.key)
	if err != nil {
		c.t.Fatal(err)
	}
	return signed
}

// ControlCertificate names the control plane.
func (c *CA) ControlCertificate() tls.Certificate {
	return c.Certificate(identity.ControlURI, time.Now().Add(time.Hour))
}

func newKey(t testing.TB) *ecdsa.PrivateKey {
	t.Helper()
	k, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return k
}

func serial(t testing.TB) *big.Int {
	t.Helper()
	n, err := rand.Int(rand.Reader, big.NewInt(1<<62))
	if err != nil {
		t.Fatal(err)
	}
	return n
}

func toPEM(der []byte) string {
	return string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}))
}
