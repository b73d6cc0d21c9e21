package keyring

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/hex"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"
	"net"
	"net/url"
	"strings"
	"time"

	"skerry.dev/skerry/internal/kernel/errs"
	"skerry.dev/skerry/internal/kernel/id"
)

// Lifetimes of certificates.
const (
	caLifetime   = 10 * 365 * 24 * time.Hour
	LeafLifetime = 7 * 24 * time.Hour
	// backdate forgives clocks that are a little behind ours.
	backdate = 5 * time.Minute
)

// ControlIdentity is the URI in every control plane's certificate.
const ControlIdentity = "skerry://control"

// HostIdentity is the URI in a host's certificate.
func HostIdentity(host id.Host) string { return "skerry://host/" + host.UUID().String() }

// HostOf returns the host that a certificate names. The certificate must have
// been verified against the platform's CA before.
func HostOf(cert *x509.Certificate) (id.Host, bool) {
	for _, uri := range cert.URIs {
		if bare, ok := strings.CutPrefix(uri.String(), "skerry://host/"); ok {
			host, err := id.Host{}.ParseBare(bare)
			return host, err == nil
		}
	}
	return id.Host{}, false
}

type authority struct {
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
}

func newAuthority(certDER []byte, private any) (authority, error) {
	cert, err := x509.ParseCertificate(certDER)
	if err != nil {
		return authority{}, fmt.Errorf("parse the CA's certificate: %w", err)
	}
	key, ok := private.(*ecdsa.PrivateKey)
	if !ok || !key.PublicKey.Equal(cert.PublicKey) {
		return authority{}, errors.New("the CA's key and certificate do not belong together")
	}
	return authority{cert: cert, key: key}, nil
}

func (k *Keyring) newCA() (StoredKey, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return StoredKey{}, err
	}
	stored, err := k.seal(KindCA, key, key.Public())
	if err != nil {
		return StoredKey{}, err
	}
	now := k.clock.Now()
	template := &x509.Certificate{
		SerialNumber: newSerial(), Subject: pkix.Name{CommonName: "Skerry platform CA " + stored.KID},
		NotBefore: now.Add(-backdate), NotAfter: now.Add(caLifetime),
		KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageCRLSign, BasicConstraintsValid: true, IsCA: true, MaxPathLenZero: true,
	}
	stored.Public, err = x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	return stored, err
}

// CA is the platform's own certificate.
func (k *Keyring) CA() *x509.Certificate {
	k.mu.RLock()
	defer k.mu.RUnlock()
	return k.ca.cert
}

// CAPEM is the CA's certificate as hosts keep it.
func (k *Keyring) CAPEM() []byte {
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: k.CA().Raw})
}

// CASHA256 is the fingerprint that an install command carries: the SHA-256 of
// the CA's certificate (DER) in hex.
func (k *Keyring) CASHA256() string {
	sum := sha256.Sum256(k.CA().Raw)
	return hex.EncodeToString(sum[:])
}

// CAPool holds the CA alone.
func (k *Keyring) CAPool() *x509.CertPool {
	pool := x509.NewCertPool()
	pool.AddCert(k.CA())
	return pool
}

// IssueServer makes a certificate of the control plane with a fresh key, valid
// for seven days, for the names and addresses that hosts call it by. The chain
// holds the CA too, so that a first contact can check its fingerprint.
func (k *Keyring) IssueServer(names []string, addresses []net.IP) (*tls.Certificate, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	leaf, err := k.issue(key.Public(), ControlIdentity, names, addresses)
	if err != nil {
		return nil, err
	}
	return &tls.Certificate{Certificate: [][]byte{leaf.Raw, k.CA().Raw}, PrivateKey: key, Leaf: leaf}, nil
}

// SignHost makes a host's certificate, valid for seven days, for the key that
// signed the request (PKCS #10, DER). Nothing else in the request counts.
func (k *Keyring) SignHostCertificate(host id.Host, requestDER []byte) (*x509.Certificate, error) {
	request, err := x509.ParseCertificateRequest(requestDER)
	if err == nil {
		err = request.CheckSignature()
	}
	if err != nil {
		return nil, errs.Field("csr", "The certificate request is malformed or not signed by its own key.").Because(err)
	}
	switch key := request.PublicKey.(type) {
	case *ecdsa.PublicKey:
		if key.Curve != elliptic.P256() && key.Curve != elliptic.P384() {
			return nil, errs.Field("csr", "Use an ECDSA key on P-256 or P-384, or an Ed25519 key.")
		}
	default:
		if request.PublicKeyAlgorithm != x509.Ed25519 {
			return nil, errs.Field("csr", "Use an ECDSA key on P-256 or P-384, or an Ed25519 key.")
		}
	}
	return k.issue(request.PublicKey, HostIdentity(host), nil, nil)
}

func (k *Keyring) issue(public any, identity string, names []string, addresses []net.IP) (*x509.Certificate, error) {
	uri, err := url.Parse(identity)
	if err != nil {
		return nil, err
	}
	k.mu.RLock()
	ca := k.ca
	k.mu.RUnlock()
	now := k.clock.Now()
	template := &x509.Certificate{
		SerialNumber: newSerial(), Subject: pkix.Name{CommonName: identity},
		URIs: []*url.URL{uri}, DNSNames: names, IPAddresses: addresses,
		NotBefore: now.Add(-backdate), NotAfter: now.Add(LeafLifetime),
		KeyUsage:              x509.KeyUsageDigitalSignature,
		ExtKeyUsage:           []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
		BasicConstraintsValid: true,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, ca.cert, public, ca.key)
	if err != nil {
		return nil, fmt.Errorf("sign a certificate for %s: %w", identity, err)
	}
	return x509.ParseCertificate(der)
}

func newSerial() *big.Int {
	var b [16]byte
	_, _ = rand.Read(b[:])
	b[0] &= 0x7f // positive
	return new(big.Int).SetBytes(b[:])
}
