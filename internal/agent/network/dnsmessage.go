package network

import (
	"bytes"
	"encoding/binary"
)

const (
	dnsHeader      = 12
	maxDNSName     = 255
	dnsFlagAnswer  = 0x80
	dnsOpcodeMask  = 0x78
	dnsRefused     = 5
	dnsServFail    = 2
	dnsFlagsWanted = dnsOpcodeMask | 0x01 // opcode and recursion desired are repeated
)

// question returns header and question of a query, the only part of a message
// that is ever looked into; nil for what is no plain query with one question.
func question(msg []byte) []byte {
	if len(msg) < dnsHeader || msg[2]&(dnsFlagAnswer|dnsOpcodeMask) != 0 || binary.BigEndian.Uint16(msg[4:]) != 1 {
		return nil
	}
	end := questionEnd(msg)
	if end < 0 {
		return nil
	}
	return msg[:end]
}

// questionEnd is where the first question ends; -1 when it is malformed.
// Compression cannot occur there: nothing comes before it.
func questionEnd(msg []byte) int {
	i := dnsHeader
	for i < len(msg) {
		n := int(msg[i])
		switch {
		case n == 0:
			if i+5 > len(msg) {
				return -1
			}
			return i + 5 // the root label, type and class
		case n > 63:
			return -1
		}
		if i += 1 + n; i-dnsHeader > maxDNSName {
			return -1
		}
	}
	return -1
}

// answers reports whether reply belongs to the query whose header and question
// these are: same id, same question, in whatever case.
func answers(reply, q []byte) bool {
	if len(reply) < dnsHeader || reply[0] != q[0] || reply[1] != q[1] || reply[2]&dnsFlagAnswer == 0 {
		return false
	}
	// An error may come without the question.
	if binary.BigEndian.Uint16(reply[4:]) == 0 {
		return reply[3]&0x0f != 0 && len(reply) == dnsHeader
	}
	end := questionEnd(reply)
	return end == len(q) && bytes.EqualFold(reply[dnsHeader:end], q[dnsHeader:])
}

// refusal answers a query with an error and nothing else; it is never longer
// than the query.
func refusal(q []byte, rcode byte) []byte {
	r := bytes.Clone(q)
	r[2] = dnsFlagAnswer | q[2]&dnsFlagsWanted
	r[3] = 0x80 | rcode // recursion available
	for i := 6; i < dnsHeader; i++ {
		r[i] = 0
	}
	return r
}
