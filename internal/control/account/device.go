package account

import (
	"context"
	"crypto/rand"
	"fmt"
	"net/netip"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/google/uuid"

	"skerry.dev/skerry/internal/control/audit"
	"skerry.dev/skerry/internal/control/principal"
	"skerry.dev/skerry/internal/kernel/errs"
	"skerry.dev/skerry/internal/kernel/id"
)

// How long a device login waits for its approval, and how often a program may
// ask.
const (
	DeviceLifetime     = 10 * time.Minute
	DevicePollInterval = 5 * time.Second
)

// StartedDeviceLogin is what a program shows and polls with.
type StartedDeviceLogin struct {
	DeviceCode      string    `json:"device_code"`
	UserCode        string    `json:"user_code"`
	VerificationURL string    `json:"verification_url"`
	ExpiresAt       time.Time `json:"expires_at"`
}

// NewDeviceLogin is a device login as it is kept.
type NewDeviceLogin struct {
	ID         uuid.UUID
	DeviceHash []byte
	UserCode   string
	ClientName string
	IP         netip.Addr
}

// DeviceLogin is one that waits for a decision, as who decides sees it.
type DeviceLogin struct {
	UserCode   string
	ClientName string
	IP         netip.Addr
	CreatedAt  time.Time
	ExpiresAt  time.Time
}

// DeviceStanding is how a device login stands with whoever polls.
type DeviceStanding struct {
	Denied   bool
	Approved bool
	User     id.User // who approved
}

// ErrCodeTaken is a user code that is in use.
var ErrCodeTaken = errs.Conflict("user_code_taken", "This code is in use.")

var (
	errPending        = errs.Invalid("authorization_pending", "Nobody has decided yet. Ask again after interval_sec.")
	errSlowDown       = errs.Exhausted("slow_down", "Too fast. Ask no more often than each interval_sec.")
	errExpiredDevice  = errs.Invalid("expired_token", "This device login has expired or was used. Begin again.")
	errDeniedDevice   = errs.Forbidden("access_denied", "The login was denied in the browser.")
	errNoDeviceLogin  = errs.NotFound("device_login_not_found", "No login waits under this code. Codes work once, for ten minutes.")
	errDeviceCodeName = fmt.Sprintf("client_name must have at most %d printable characters.", maxName)
)

// codeLetters are those that nobody mistakes for another or for a digit;
// without vowels they make no words.
const codeLetters = "BCDFGHJKLMNPQRSTVWXZ"

const codeLength = 8

// newUserCode makes a code as ABCD-EFGH: one of 25 thousand million.
func newUserCode() string {
	var code strings.Builder
	for code.Len() < codeLength+1 {
		if code.Len() == codeLength/2 {
			code.WriteByte('-')
		}
		var b [1]byte
		_, _ = rand.Read(b[:])                       // never fails, see crypto/rand
		if n := int(b[0]); n < 12*len(codeLetters) { // all letters alike
			code.WriteByte(codeLetters[n%len(codeLetters)])
		}
	}
	return code.String()
}

// normalizeCode reads a user code as people type it.
func normalizeCode(typed string) string {
	letters := strings.Map(func(r rune) rune {
		if unicode.IsLetter(r) {
			return unicode.ToUpper(r)
		}
		return -1
	}, typed)
	if len(letters) != codeLength {
		return ""
	}
	return letters[:codeLength/2] + "-" + letters[codeLength/2:]
}

// StartDeviceLogin begins a login that somebody approves in a browser.
func (s *Service) StartDeviceLogin(ctx context.Context, by principal.Principal, client string) (StartedDeviceLogin, error) {
	client = strings.TrimSpace(client)
	if utf8.RuneCountInString(client) > maxName || !utf8.ValidString(client) || strings.ContainsFunc(client, unicode.IsControl) {
		return StartedDeviceLogin{}, errs.Field("client_name", errDeviceCodeName)
	}
	for attempt := 0; ; attempt++ {
		d := StartedDeviceLogin{DeviceCode: newSecret(), UserCode: newUserCode(), VerificationURL: s.url + "/login/device"}
		kept := NewDeviceLogin{ID: uuid.Must(uuid.NewV7()), DeviceHash: hashOf(d.DeviceCode), UserCode: d.UserCode, ClientName: client, IP: by.IP}
		expires, err := s.store.CreateDeviceLogin(ctx, kept, func(expires time.Time) any {
			receipt := d
			receipt.ExpiresAt = expires
			return receipt
		})
		if errs.Is(err, ErrCodeTaken.Reason) && attempt < 3 {
			continue
		}
		d.ExpiresAt = expires
		return d, err
	}
}

// DeviceLogin tells a logged-in user what asks, before it is approved.
func (s *Service) DeviceLogin(ctx context.Context, by principal.Principal, code string) (DeviceLogin, error) {
	if wait := s.codesByUser.Wait(by.UserID.String()); wait > 0 {
		return DeviceLogin{}, errTooMany.After(wait)
	}
	d, found, err := s.store.PendingDeviceLogin(ctx, normalizeCode(code))
	if err == nil && !found {
		s.codesByUser.Take(by.UserID.String())
		err = errNoDeviceLogin
	}
	return d, err
}

// DecideDeviceLogin approves a device login for the caller, or denies it.
func (s *Service) DecideDeviceLogin(ctx context.Context, by principal.Principal, code string, approve bool) error {
	if wait := s.codesByUser.Wait(by.UserID.String()); wait > 0 {
		return errTooMany.After(wait)
	}
	found, err := s.store.DecideDeviceLogin(ctx, normalizeCode(code), by.UserID, approve, func(client string) audit.Entry {
		return audit.By(by).DeviceDecided(trailOf(by), client, approve)
	})
	if err == nil && !found {
		s.codesByUser.Take(by.UserID.String())
		err = errNoDeviceLogin
	}
	return err
}

// PollDeviceLogin exchanges an approved device login for a session, once.
func (s *Service) PollDeviceLogin(ctx context.Context, by principal.Principal, deviceCode string) (Auth, error) {
	hash := hashOf(deviceCode)
	standing, found, err := s.store.DeviceLoginOf(ctx, hash)
	switch {
	case err != nil:
		return Auth{}, err
	case !found:
		return Auth{}, errExpiredDevice
	}
	if wait := s.pollsByDevice.Take(string(hash)); wait > 0 {
		return Auth{}, errSlowDown.After(wait)
	}
	switch {
	case standing.Denied:
		return Auth{}, errDeniedDevice
	case !standing.Approved:
		return Auth{}, errPending
	}
	user, found, err := s.store.UserByID(ctx, standing.User)
	if err != nil {
		return Auth{}, err
	}
	if !found || !user.IsActive {
		return Auth{}, errExpiredDevice
	}
	login, err := s.prepareLogin(ctx, by, user.User)
	if err != nil {
		return Auth{}, err
	}
	ok, err := s.store.SpendDeviceLogin(ctx, hash, login)
	if err == nil && !ok || errs.Is(err, ErrCredentialsMoved.Reason) {
		err = errExpiredDevice
	}
	if err != nil {
		return Auth{}, err
	}
	return login.Answer, nil
}
