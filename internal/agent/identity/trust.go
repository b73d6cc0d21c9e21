package identity

import (
	"crypto/ecdsa"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/hex"
	"encoding/pem"
	"errors"
	"fmt"
	"strings"
	"time"

	"skerry.dev/skerry/internal/kernel/clock"
	"skerry.dev/skerry/internal/kernel/id"
)

// ControlURI is the identity of the control plane in its certificates.
const ControlURI = "skerry://control"

// HostURI is the identity of a host in its certificate.
func HostURI(host id.Host) string { return "skerry://host/" + host.UUID().String() }

// errUntrusted is a peer that is not the platform's control plane.
var errUntrusted = errors.New("identity: the control plane's certificate is not trusted")

// certificateRequest asks for a certificate for the host's key; it carries
// nothing else, the control plane decides what the certificate says.
func certificateRequest(k *ecdsa.PrivateKey) (string, error) {
	der, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{
		Subject: pkix.Name{CommonName: "skerry host"},
	}, k)
	if err != nil {
		return "", fmt.Errorf("identity: %w", err)
	}
	return string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: der})), nil
}

// fingerprint is the SHA-256 of a certificate's DER, hex.
func fingerprint(c *x509.Certificate) string {
	sum := sha256.Sum256(c.Raw)
	return hex.EncodeToString(sum[:])
}

// pinned accepts a peer whose chain holds the CA with the given fingerprint.
// It is how the first contact is already authenticated.
func pinned(pin string, c clock.Clock) func(tls.ConnectionState) error {
	return func(s tls.ConnectionState) error {
		for _, ca := range s.PeerCertificates {
			if ca.IsCA && fingerprint(ca) == strings.ToLower(pin) {
				roots := x509.NewCertPool()
				roots.AddCert(ca)
				return verifyControl(s, roots, c.Now())
			}
		}
		return fmt.Errorf("%w: no CA with the SHA-256 %s in its chain; check the install command", errUntrusted, pin)
	}
}

// rooted accepts the control plane under the platform's CA.
func rooted(roots *x509.CertPool, c clock.Clock) func(tls.ConnectionState) error {
	return func(s tls.ConnectionState) error {
		return verifyControl(s, roots, c.Now())
	}
}

// verifyControl checks the chain, the usage and that the one URI names the
// control plane. Names and addresses say nothing: hosts have certificates of
// the same CA.
func verifyControl(s tls.ConnectionState, roots *x509.CertPool, now time.Time) error {
	if len(s.PeerCertificates) == 0 {
		return fmt.Errorf("%w: it presented none", errUntrusted)
	}
	leaf := s.PeerCertificates[0]
	between := x509.NewCertPool()
	for _, c := range s.PeerCertificates[1:] {
		between.AddCert(c)
	}
	options := x509.VerifyOptions{Roots: roots, Intermediates: between, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}, CurrentTime: now}
	if _, err := leaf.Verify(options); err != nil {
		if now.Before(leaf.NotBefore) || now.After(leaf.NotAfter) {
			// It renews its own in time, so it is rather we who are wrong.
			return fmt.Errorf("%w: it is valid from %s to %s, and this machine's clock says %s: set the clock (timedatectl set-ntp true)", errUntrusted,
				leaf.NotBefore.UTC().Format(time.RFC3339), leaf.NotAfter.UTC().Format(time.RFC3339), now.UTC().Format(time.RFC3339))
		}
		return fmt.Errorf("%w: %w", errUntrusted, err)
	}
	if !names(leaf, ControlURI) {
		return fmt.Errorf("%w: it does not name %s", errUntrusted, ControlURI)
	}
	return nil
}

func names(c *x509.Certificate, uri string) bool {
	return len(c.URIs) == 1 && c.URIs[0].String() == uri
}

// material is a set of credentials, checked and ready for use.
type material struct {
	creds   Credentials
	ca      *x509.Certificate
	cert    tls.Certificate
	roots   *x509.CertPool
	renewAt time.Time
	// endsAt is when the first of them is over, late when a quarter is left.
	late, endsAt time.Time
}

// check refuses credentials that do not fit the key, the CA or the host. A pin
// that is not empty must be the CA's.
func check(c Credentials, k *ecdsa.PrivateKey, pin string) (*material, error) {
	ca, err := parseCertificate(c.CA)
	if err != nil {
		return nil, fmt.Errorf("identity: the platform's CA: %w", err)
	}
	if pin != "" && fingerprint(ca) != strings.ToLower(pin) {
		return nil, fmt.Errorf("%w: the CA in the answer is not the pinned one", errUntrusted)
	}
	leaf, err := parseCertificate(c.Certificate)
	if err != nil {
		return nil, fmt.Errorf("identity: the host's certificate: %w", err)
	}
	pub, ok := leaf.PublicKey.(*ecdsa.PublicKey)
	if !ok || !pub.Equal(&k.PublicKey) {
		return nil, errors.New("identity: the host's certificate is for another key")
	}
	if c.HostID.IsZero() || c.HostJWT == "" || c.RefreshToken == "" {
		return nil, errors.New("identity: the control plane's answer is incomplete")
	}
	roots := x509.NewCertPool()
	roots.AddCert(ca)
	// The time is the control plane's to judge: a host whose clock is wrong, or
	// that was off for long, shall still be able to ask for renewal.
	if _, err := leaf.Verify(x509.VerifyOptions{Roots: roots, CurrentTime: leaf.NotBefore, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageAny}}); err != nil {
		return nil, fmt.Errorf("identity: the host's certificate: %w", err)
	}
	if !names(leaf, HostURI(c.HostID)) {
		return nil, fmt.Errorf("identity: the host's certificate does not name %s", HostURI(c.HostID))
	}
	m := &material{
		creds: c, ca: ca, roots: roots,
		cert: tls.Certificate{Certificate: [][]byte{leaf.Raw, ca.Raw}, PrivateKey: k, Leaf: leaf},
	}
	m.endsAt = earlier(leaf.NotAfter, c.HostJWTExpiresAt)
	life := m.endsAt.Sub(c.ObtainedAt)
	m.renewAt, m.late = c.ObtainedAt.Add(life/2), m.endsAt.Add(-life/4)
	return m, nil
}

func earlier(a, b time.Time) time.Time {
	if a.Before(b) {
		return a
	}
	return b
}

func parseCertificate(text string) (*x509.Certificate, error) {
	block, _ := pem.Decode([]byte(text))
	if block == nil || block.Type != "CERTIFICATE" {
		return nil, errors.New("not a PEM certificate")
	}
	return x509.ParseCertificate(block.Bytes)
}
