package e2e

import (
	"net"
	"strings"
	"testing"

	"golang.org/x/net/dns/dnsmessage"
)

// privateName is known to the resolver of the tests alone, which listens on the
// host's loopback: no sandbox could ask it by itself.
const (
	privateName    = "build-cache.corp.test."
	privateAddress = "203.0.113.77"
)

// privateResolver answers for privateName, for as long as the tests run.
func privateResolver() (address string, err error) {
	conn, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		return "", err
	}
	go func() {
		buffer := make([]byte, 1500)
		for {
			n, from, err := conn.ReadFrom(buffer)
			if err != nil {
				return
			}
			var query dnsmessage.Message
			if query.Unpack(buffer[:n]) != nil || len(query.Questions) != 1 {
				continue
			}
			answer := dnsmessage.Message{
				Header:    dnsmessage.Header{ID: query.ID, Response: true, RecursionAvailable: true, RCode: dnsmessage.RCodeNameError},
				Questions: query.Questions,
			}
			if question := query.Questions[0]; question.Name.String() == privateName {
				answer.RCode = dnsmessage.RCodeSuccess
				if question.Type == dnsmessage.TypeA {
					answer.Answers = []dnsmessage.Resource{{
						Header: dnsmessage.ResourceHeader{Name: question.Name, Class: question.Class, TTL: 60},
						Body:   &dnsmessage.AResource{A: [4]byte(net.ParseIP(privateAddress).To4())},
					}}
				}
			}
			if raw, err := answer.Pack(); err == nil {
				_, _ = conn.WriteTo(raw, from)
			}
		}
	}()
	return conn.LocalAddr().String(), nil
}

// A name resolves inside though the host's resolver is a private one.
func TestS14_NamesResolveThroughAPrivateResolver(t *testing.T) {
	in := skerry(t)
	box := in.Create(t, nil)
	got := in.Sh(t, box.ID, "getent hosts "+strings.TrimSuffix(privateName, "."))
	if !strings.HasPrefix(got.Stdout, privateAddress) {
		t.Errorf("%s resolves to %+v, want %s", privateName, got, privateAddress)
	}
	if got := in.Sh(t, box.ID, "getent hosts unknown.corp.test"); got.ExitCode == 0 {
		t.Errorf("an unknown name resolves: %+v", got)
	}
	cut := in.Create(t, map[string]any{"network": map[string]any{"internet": false}})
	if got := in.Sh(t, cut.ID, "getent hosts "+strings.TrimSuffix(privateName, ".")); got.ExitCode == 0 {
		t.Errorf("without a network a name resolves: %+v", got)
	}
}
