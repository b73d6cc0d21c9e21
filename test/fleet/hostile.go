package fleet

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"io"
	"net/http"
)

// Say posts to the servers what the agent never would, with the credentials that
// whoever owns the machine has.
func (h *Host) Say(ctx context.Context, path string, body any) (status int, answer []byte, err error) {
	raw, err := h.Read("agent/identity/credentials.json")
	if err != nil {
		return 0, nil, err
	}
	var held struct {
		JWT         string `json:"host_jwt"`
		Certificate string `json:"certificate"`
	}
	if err := json.Unmarshal(raw, &held); err != nil {
		return 0, nil, err
	}
	key, err := h.Read("agent/identity/host.key")
	if err != nil {
		return 0, nil, err
	}
	cert, err := tls.X509KeyPair([]byte(held.Certificate), key)
	if err != nil {
		return 0, nil, err
	}
	client := &http.Client{Transport: &http.Transport{TLSClientConfig: &tls.Config{
		Certificates: []tls.Certificate{cert},
		// The servers' certificates name the control plane, not an address.
		InsecureSkipVerify: true,
		VerifyConnection: func(s tls.ConnectionState) error {
			_, err := s.PeerCertificates[0].Verify(x509.VerifyOptions{Roots: h.fleet.keys.CAPool(), KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageAny}})
			return err
		},
	}}}
	defer client.CloseIdleConnections()
	sent, err := json.Marshal(body)
	if err != nil {
		return 0, nil, err
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, h.fleet.AgentURL()+path, bytes.NewReader(sent))
	if err != nil {
		return 0, nil, err
	}
	req.Header.Set("Content-Type", "application/json")
	req.Header.Set("Authorization", "Bearer "+held.JWT)
	res, err := client.Do(req)
	if err != nil {
		return 0, nil, err
	}
	answer, err = io.ReadAll(res.Body)
	return res.StatusCode, answer, errors.Join(err, res.Body.Close())
}

// Audited counts the entries of the trail that say that a host did something with
// a sandbox.
func (h *Host) Audited(ctx context.Context, action, sandbox string) (n int, err error) {
	err = h.fleet.pool.QueryRow(ctx, `SELECT count(*) FROM audit_logs WHERE resource_type = 'host' AND resource_id = $1 AND action = $2
		AND metadata ->> 'sandbox_id' = $3`, h.ID, action, sandbox).Scan(&n)
	return n, err
}
