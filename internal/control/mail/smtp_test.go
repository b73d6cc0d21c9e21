package mail_test

import (
	"bytes"
	"context"
	"io"
	"log/slog"
	"mime"
	"mime/quotedprintable"
	"net"
	netmail "net/mail"
	"slices"
	"strings"
	"testing"
	"time"

	"skerry.dev/skerry/internal/control/mail"
	"skerry.dev/skerry/internal/kernel/clock"
	"skerry.dev/skerry/internal/testkit"
)

const sender = "Skerry <skerry@example.com>"

func open(t *testing.T, s *smtpServer, url string) mail.Mailer {
	t.Helper()
	m, err := mail.Open(url, sender, slog.New(slog.DiscardHandler), clock.System{})
	if err != nil {
		t.Fatal(err)
	}
	if smtp, ok := m.(*mail.SMTP); ok {
		smtp.Roots = s.roots
	}
	return m
}

func TestA8_LettersArriveEncryptedAndWhole(t *testing.T) {
	for name, tt := range map[string]struct {
		server *smtpServer
		url    string // without host
		tls    bool
		user   string
	}{
		"STARTTLS":        {server: &smtpServer{starttls: true}, url: "smtp://ada:p%40ss@HOST", tls: true, user: "ada"},
		"implicit TLS":    {server: &smtpServer{implicit: true}, url: "smtps://ada:p%40ss@HOST", tls: true, user: "ada"},
		"loopback, plain": {server: &smtpServer{}, url: "smtp://HOST"},
		"TLS off":         {server: &smtpServer{starttls: true}, url: "smtp://HOST?tls=off"},
	} {
		t.Run(name, func(t *testing.T) {
			s := tt.server.start(t)
			m := open(t, s, strings.Replace(tt.url, "HOST", s.address, 1))
			text := "Hällo,\n\n.\nhttps://skerry.test/reset#token=" + strings.Repeat("x", 100) + "\n"
			if err := m.Send(t.Context(), mail.Message{To: "ada@example.org", Subject: "Päss", Text: text}); err != nil {
				t.Fatal(err)
			}
			got := s.got()
			if len(got) != 1 || got[0].tls != tt.tls || got[0].user != tt.user || got[0].from != "FROM:<skerry@example.com>" || got[0].to != "TO:<ada@example.org>" {
				t.Fatalf("got %+v", got)
			}
			letter, err := netmail.ReadMessage(bytes.NewReader(got[0].data))
			if err != nil {
				t.Fatal(err)
			}
			subject, err := new(mime.WordDecoder).DecodeHeader(letter.Header.Get("Subject"))
			body, errBody := io.ReadAll(quotedprintable.NewReader(letter.Body))
			if err != nil || errBody != nil || subject != "Päss" || strings.ReplaceAll(string(body), "\r\n", "\n") != text {
				t.Errorf("subject %q, body %q (%v, %v)", subject, body, err, errBody)
			}
			if date, err := letter.Header.Date(); err != nil || time.Since(date) > time.Minute || letter.Header.Get("Message-ID") == "" || letter.Header.Get("From") != `"Skerry" <skerry@example.com>` {
				t.Errorf("headers %v", letter.Header)
			}
		})
	}
}

func TestA8_NothingIsSentPastWhatWasConfigured(t *testing.T) {
	strict := (&smtpServer{implicit: true}).start(t)
	wrongRoots := open(t, (&smtpServer{}).start(t), "smtps://"+strict.address)
	if err := wrongRoots.Send(t.Context(), mail.Message{To: "ada@example.org"}); err == nil || len(strict.got()) != 0 {
		t.Errorf("a server nobody vouches for: %v", err)
	}
	s := (&smtpServer{starttls: true}).start(t)
	if err := open(t, s, "smtp://ada:wrong@"+s.address).Send(t.Context(), mail.Message{To: "ada@example.org"}); err == nil || strings.Contains(err.Error(), "wrong") {
		t.Errorf("a wrong password: %v", err)
	}
	for _, to := range []string{"", "ada", "a@b.de, c@d.de", "<a@b.de>", "Ada <a@b.de>", "a@b.de\r\nBcc: c@d.de", "a@b.de>\r\nDATA"} {
		if err := open(t, s, "smtp://"+s.address).Send(t.Context(), mail.Message{To: to}); err == nil {
			t.Errorf("%q was written to", to)
		}
	}
	if n := len(s.got()); n != 0 {
		t.Errorf("%d letters arrived", n)
	}
}

func TestA8_OnlyThisMachineIsWrittenToInTheClear(t *testing.T) {
	addrs, err := net.InterfaceAddrs()
	if err != nil {
		t.Fatal(err)
	}
	at := slices.IndexFunc(addrs, func(a net.Addr) bool {
		n, ok := a.(*net.IPNet)
		return ok && n.IP.To4() != nil && n.IP.IsGlobalUnicast()
	})
	if at < 0 {
		testkit.Missing(t, "network", "the machine has no address but its own loopback's")
	}
	s := (&smtpServer{everywhere: true}).start(t)
	_, port, err := net.SplitHostPort(s.address)
	if err != nil {
		t.Fatal(err)
	}
	host := net.JoinHostPort(addrs[at].(*net.IPNet).IP.String(), port)
	if err := open(t, s, "smtp://"+host).Send(t.Context(), mail.Message{To: "ada@example.org"}); err == nil || !strings.Contains(err.Error(), "STARTTLS") {
		t.Errorf("a server without TLS: %v", err)
	}
	if n := len(s.got()); n != 0 {
		t.Errorf("%d letters arrived", n)
	}
	if err := open(t, s, "smtp://"+host+"?tls=off").Send(t.Context(), mail.Message{To: "ada@example.org"}); err != nil {
		t.Errorf("where the operator allows it: %v", err)
	}
}

func TestSendEndsWithItsContext(t *testing.T) {
	s := (&smtpServer{mute: true}).start(t)
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	if err := open(t, s, "smtp://"+s.address).Send(ctx, mail.Message{To: "ada@example.org"}); err == nil {
		t.Error("a mute server took a letter")
	}
}

func TestConfigurationOfMail(t *testing.T) {
	var log bytes.Buffer
	logger := slog.New(slog.NewTextHandler(&log, nil))
	for _, bad := range [][2]string{
		{"smtp://host:1", ""},
		{"smtp://host:1", "no address"},
		{"http://host", sender},
		{"smtp://", sender},
		{"smtp://host/path", sender},
		{"smtps://host?tls=off", sender},
		{"smtp://user:sec ret@ho st", sender},
	} {
		if m, err := mail.Open(bad[0], bad[1], logger, clock.System{}); err == nil || strings.Contains(err.Error(), "sec ret") {
			t.Errorf("%q from %q: %v, %v", bad[0], bad[1], m, err)
		}
	}
	if m, err := mail.Open("", "", logger, clock.System{}); m != nil || err != nil {
		t.Errorf("no mail: %v, %v", m, err)
	}
	m, err := mail.Open("log:", "", logger, clock.System{})
	if err != nil {
		t.Fatal(err)
	}
	if err := m.Send(t.Context(), mail.Message{To: "ada@example.org", Text: "the link"}); err != nil || !strings.Contains(log.String(), "the link") {
		t.Errorf("log: %v %s", err, log.String())
	}
}
