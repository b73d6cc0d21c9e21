package mail_test

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"io"
	"math/big"
	"net"
	"net/textproto"
	"strings"
	"sync"
	"testing"
	"time"
)

// received is one letter as the server got it.
type received struct {
	from, to, user string
	tls            bool
	data           []byte
}

// smtpServer is a mail server as small as RFC 5321 allows.
type smtpServer struct {
	address  string
	config   *tls.Config
	roots    *x509.CertPool
	starttls bool
	implicit bool
	mute     bool // takes connections and says nothing
	// everywhere listens on all of the machine's addresses.
	everywhere bool

	mu      sync.Mutex
	letters []received
	conns   sync.WaitGroup
}

func (s *smtpServer) start(t *testing.T) *smtpServer {
	t.Helper()
	s.certify(t)
	listen := "127.0.0.1:0"
	if s.everywhere {
		listen = "0.0.0.0:0"
	}
	listener, err := net.Listen("tcp", listen)
	if err != nil {
		t.Fatal(err)
	}
	s.address = listener.Addr().String()
	done := make(chan struct{})
	var open sync.Map
	go func() {
		defer close(done)
		for {
			conn, err := listener.Accept()
			if err != nil {
				return
			}
			open.Store(conn, nil)
			s.conns.Go(func() {
				defer conn.Close()
				s.serve(conn)
			})
		}
	}()
	t.Cleanup(func() {
		listener.Close()
		<-done
		open.Range(func(conn, _ any) bool { conn.(net.Conn).Close(); return true })
		s.conns.Wait()
	})
	return s
}

// certify makes the server a certificate for 127.0.0.1.
func (s *smtpServer) certify(t *testing.T) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}, IsCA: true, BasicConstraintsValid: true,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	parsed, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	s.roots = x509.NewCertPool()
	s.roots.AddCert(parsed)
	s.config = &tls.Config{Certificates: []tls.Certificate{{Certificate: [][]byte{der}, PrivateKey: key}}}
}

func (s *smtpServer) serve(conn net.Conn) {
	if s.mute {
		_, _ = io.Copy(io.Discard, conn)
		return
	}
	secure := s.implicit
	if s.implicit {
		conn = tls.Server(conn, s.config)
	}
	text := textproto.NewConn(conn)
	say := func(line string) { _ = text.PrintfLine("%s", line) }
	say("220 test ESMTP")
	var letter received
	for {
		line, err := text.ReadLine()
		if err != nil {
			return
		}
		verb, rest, _ := strings.Cut(line, " ")
		switch strings.ToUpper(verb) {
		case "EHLO":
			if s.starttls && !secure {
				say("250-test")
				say("250 STARTTLS")
			} else {
				say("250-test")
				say("250 AUTH PLAIN")
			}
		case "STARTTLS":
			say("220 go on")
			conn = tls.Server(conn, s.config)
			text, secure = textproto.NewConn(conn), true
		case "AUTH":
			raw, _ := base64.StdEncoding.DecodeString(strings.TrimPrefix(rest, "PLAIN "))
			parts := bytes.Split(raw, []byte{0})
			if len(parts) != 3 || string(parts[2]) != "p@ss" {
				say("535 no")
				continue
			}
			letter.user = string(parts[1])
			say("235 welcome")
		case "MAIL":
			letter.from = rest
			say("250 ok")
		case "RCPT":
			letter.to = rest
			say("250 ok")
		case "DATA":
			say("354 go on")
			letter.data, err = text.ReadDotBytes()
			if err != nil {
				return
			}
			letter.tls = secure
			s.mu.Lock()
			s.letters = append(s.letters, letter)
			s.mu.Unlock()
			say("250 taken")
		case "QUIT":
			say("221 bye")
			return
		default:
			say("500 what?")
		}
	}
}

func (s *smtpServer) got() []received {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.letters
}
