package mail

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
	"mime"
	"mime/quotedprintable"
	"net"
	"net/mail"
	"net/netip"
	"net/smtp"
	"net/url"
	"os"
	"strings"
	"time"

	"skerry.dev/skerry/internal/kernel/clock"
)

// sendWithin bounds a whole conversation with the server.
const sendWithin = 30 * time.Second

// SMTP sends through one server.
type SMTP struct {
	address  string // host:port
	host     string
	implicit bool // TLS from the first byte
	plain    bool // no TLS at all: the operator said so, or it is this machine
	user     *url.Userinfo
	from     *mail.Address
	clock    clock.Clock

	// Roots verify the server; nil is the system's.
	Roots *x509.CertPool
}

// Open reads SKERRY_SMTP_URL and SKERRY_MAIL_FROM:
//
//	smtps://user:password@host:465   TLS from the first byte
//	smtp://user:password@host:587    STARTTLS, and nothing is sent without it
//	smtp://host:25?tls=off           in the clear, for a relay on a network of one's own
//	log:                             into the log
//
// It returns nil for an empty URL: there is no mail. On the machine's own
// loopback STARTTLS is used when offered.
func Open(server, from string, log *slog.Logger, clock clock.Clock) (Mailer, error) {
	if server == "" {
		return nil, nil
	}
	bad := errors.New("must be smtp://user:password@host:587, smtps://user:password@host:465 or log:")
	u, err := url.Parse(server)
	if err != nil {
		return nil, bad // the parser's message would show the password
	}
	if u.Scheme == "log" {
		return Log{Logger: log}, nil
	}
	if u.Scheme != "smtp" && u.Scheme != "smtps" || u.Hostname() == "" || strings.Trim(u.Path, "/") != "" || u.Fragment != "" {
		return nil, bad
	}
	s := &SMTP{host: u.Hostname(), implicit: u.Scheme == "smtps", user: u.User, clock: clock}
	switch mode := u.Query().Get("tls"); {
	case mode == "":
	case mode == "off" && !s.implicit:
		s.plain = true
	default:
		return nil, fmt.Errorf("tls may only be off, and only with smtp://, not %q", mode)
	}
	port := u.Port()
	switch {
	case port != "":
	case s.implicit:
		port = "465"
	default:
		port = "587"
	}
	s.address = net.JoinHostPort(s.host, port)
	if s.from, err = mail.ParseAddress(from); err != nil {
		return nil, fmt.Errorf("the sender must be an address such as Skerry <skerry@example.com>, not %q", from)
	}
	return s, nil
}

// Send implements Mailer.
func (s *SMTP) Send(ctx context.Context, m Message) (err error) {
	// An address is data of whoever signed up: it must be one address and nothing more.
	to, err := mail.ParseAddress(m.To)
	if err != nil || to.Address != m.To || to.Name != "" {
		return fmt.Errorf("%q cannot be written to", m.To)
	}
	ctx, cancel := context.WithTimeout(ctx, sendWithin)
	defer cancel()
	client, err := s.connect(ctx)
	if err != nil {
		return fmt.Errorf("mail server %s: %w", s.address, err)
	}
	defer client.Close()
	if err := s.deliver(client, to, m); err != nil {
		return fmt.Errorf("mail server %s: %w", s.address, err)
	}
	_ = client.Quit() // it has the letter; how it says goodbye is its own affair
	return nil
}

// connect returns a conversation that is encrypted as configured and ends with
// ctx.
func (s *SMTP) connect(ctx context.Context) (*smtp.Client, error) {
	raw, err := new(net.Dialer).DialContext(ctx, "tcp", s.address)
	if err != nil {
		return nil, err
	}
	context.AfterFunc(ctx, func() { raw.Close() })
	conn := raw
	config := &tls.Config{ServerName: s.host, RootCAs: s.Roots, MinVersion: tls.VersionTLS12}
	if s.implicit {
		conn = tls.Client(conn, config)
	}
	client, err := smtp.NewClient(conn, s.host)
	if err != nil {
		return nil, errors.Join(err, conn.Close())
	}
	if err := s.greet(client, config); err != nil {
		return nil, errors.Join(err, client.Close())
	}
	return client, nil
}

func (s *SMTP) greet(client *smtp.Client, config *tls.Config) error {
	if err := client.Hello(helloName()); err != nil {
		return err
	}
	if offered, _ := client.Extension("STARTTLS"); !s.implicit && !s.plain && (offered || !loopback(s.host)) {
		if !offered {
			return errors.New("it offers no STARTTLS; nothing was sent")
		}
		if err := client.StartTLS(config); err != nil {
			return err
		}
	}
	if s.user == nil {
		return nil
	}
	password, _ := s.user.Password()
	return client.Auth(smtp.PlainAuth("", s.user.Username(), password, s.host)) // which refuses without TLS
}

func (s *SMTP) deliver(client *smtp.Client, to *mail.Address, m Message) error {
	if err := client.Mail(s.from.Address); err != nil {
		return err
	}
	if err := client.Rcpt(to.Address); err != nil {
		return err
	}
	w, err := client.Data()
	if err != nil {
		return err
	}
	if _, err := w.Write(s.letter(to, m)); err != nil {
		return err
	}
	return w.Close()
}

// letter is the message as RFC 5322 has it.
func (s *SMTP) letter(to *mail.Address, m Message) []byte {
	var b bytes.Buffer
	_, domain, _ := strings.Cut(s.from.Address, "@")
	var name [16]byte
	_, _ = rand.Read(name[:]) // never fails, see crypto/rand
	for _, header := range [][2]string{
		{"From", s.from.String()},
		{"To", to.String()},
		{"Subject", mime.QEncoding.Encode("utf-8", m.Subject)},
		{"Date", s.clock.Now().UTC().Format(time.RFC1123Z)},
		{"Message-ID", "<" + hex.EncodeToString(name[:]) + "@" + domain + ">"},
		{"Auto-Submitted", "auto-generated"},
		{"MIME-Version", "1.0"},
		{"Content-Type", "text/plain; charset=utf-8"},
		{"Content-Transfer-Encoding", "quoted-printable"},
	} {
		b.WriteString(header[0] + ": " + header[1] + "\r\n")
	}
	b.WriteString("\r\n")
	body := quotedprintable.NewWriter(&b)
	_, _ = body.Write([]byte(strings.ReplaceAll(m.Text, "\n", "\r\n"))) // into memory
	_ = body.Close()
	return b.Bytes()
}

func helloName() string {
	name, err := os.Hostname()
	if err != nil || name == "" || strings.ContainsAny(name, " \r\n") {
		return "localhost"
	}
	return name
}

func loopback(host string) bool {
	ip, err := netip.ParseAddr(host)
	return host == "localhost" || err == nil && ip.IsLoopback()
}
