package host

import (
	"crypto/subtle"
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"strconv"
	"strings"

	"skerry.dev/skerry/internal/kernel/id"
)

// refreshToken derives the token of a family and a counter: "<family
// uuid>.<counter>.<mac>". The same arguments always give the same token, so a
// lost answer is repeated, not replaced.
func (s *Service) refreshToken(family id.HostRefreshToken, counter int64) string {
	return fmt.Sprintf("%s.%d.%s", family.UUID(), counter, s.refreshMAC(family, counter))
}

func (s *Service) refreshMAC(family id.HostRefreshToken, counter int64) string {
	u := family.UUID()
	var n [8]byte
	binary.BigEndian.PutUint64(n[:], uint64(counter))
	return hex.EncodeToString(s.secret.Derive("host-refresh", u[:], n[:]))
}

// parseRefresh reads a token that we derived; anything else is refused before
// the database is asked.
func (s *Service) parseRefresh(token string) (id.HostRefreshToken, int64, error) {
	parts := strings.Split(token, ".")
	if len(parts) != 3 {
		return id.HostRefreshToken{}, 0, ErrRefreshToken
	}
	family, err := id.HostRefreshToken{}.ParseBare(parts[0])
	if err != nil {
		return id.HostRefreshToken{}, 0, ErrRefreshToken
	}
	counter, err := strconv.ParseInt(parts[1], 10, 64)
	if err != nil || counter < 1 || strconv.FormatInt(counter, 10) != parts[1] {
		return id.HostRefreshToken{}, 0, ErrRefreshToken
	}
	if subtle.ConstantTimeCompare([]byte(s.refreshMAC(family, counter)), []byte(parts[2])) != 1 {
		return id.HostRefreshToken{}, 0, ErrRefreshToken
	}
	return family, counter, nil
}
