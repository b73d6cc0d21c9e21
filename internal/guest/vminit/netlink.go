package vminit

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"

	"golang.org/x/sys/unix"
)

// The part of netlink a machine needs to take its place, in few words.

// sockDestroy ends a socket; from linux/sock_diag.h.
const sockDestroy = 21

// neighbourMsg is struct ndmsg.
type neighbourMsg struct {
	Family uint8
	_      [3]uint8
	Index  int32
	State  uint16
	Flags  uint8
	Type   uint8
}

// diagID is struct inet_diag_sockid.
type diagID struct {
	SrcPort, DstPort uint16
	Src, Dst         [16]byte
	Interface        uint32
	Cookie           [2]uint32
}

const diagIDLen = 48

// diagRequest is struct inet_diag_req_v2.
type diagRequest struct {
	Family, Protocol, Ext, Pad uint8
	States                     uint32
	ID                         diagID
}

// binaryOf is a struct of fixed size as the kernel reads it.
func binaryOf(v any) []byte {
	var b bytes.Buffer
	if err := binary.Write(&b, binary.NativeEndian, v); err != nil {
		panic(err) // a type of ours that has no fixed size
	}
	return b.Bytes()
}

func readBinary(b []byte, v any) error {
	return binary.Read(bytes.NewReader(b), binary.NativeEndian, v)
}

func attribute(kind uint16, value []byte) []byte {
	b := binary.NativeEndian.AppendUint16(nil, uint16(4+len(value)))
	b = append(binary.NativeEndian.AppendUint16(b, kind), value...)
	for len(b)%4 != 0 {
		b = append(b, 0)
	}
	return b
}

type netlinkSocket struct {
	fd  int
	seq uint32
}

func openNetlink(protocol int) (*netlinkSocket, error) {
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC, protocol)
	if err != nil {
		return nil, fmt.Errorf("netlink: %w", err)
	}
	if err := unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &unix.Timeval{Sec: 10}); err != nil {
		unix.Close(fd)
		return nil, err
	}
	return &netlinkSocket{fd: fd}, nil
}

func (s *netlinkSocket) close() { _ = unix.Close(s.fd) }

// do sends one message and waits for the kernel's word.
func (s *netlinkSocket) do(kind int, flags int, body []byte) error {
	_, err := s.ask(kind, flags|unix.NLM_F_ACK, body)
	return err
}

// dump sends one message and collects what comes.
func (s *netlinkSocket) dump(kind int, body []byte) ([][]byte, error) {
	return s.ask(kind, unix.NLM_F_DUMP, body)
}

func (s *netlinkSocket) ask(kind, flags int, body []byte) ([][]byte, error) {
	s.seq++
	header := unix.NlMsghdr{
		Len: uint32(unix.SizeofNlMsghdr + len(body)), Type: uint16(kind), Flags: uint16(flags | unix.NLM_F_REQUEST), Seq: s.seq,
	}
	if err := unix.Sendto(s.fd, append(binaryOf(header), body...), 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}); err != nil {
		return nil, err
	}
	var out [][]byte
	buf := make([]byte, 64<<10)
	for {
		n, _, err := unix.Recvfrom(s.fd, buf, 0)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil {
			return nil, err
		}
		for b := buf[:n]; len(b) >= unix.SizeofNlMsghdr; {
			var h unix.NlMsghdr
			if err := readBinary(b[:unix.SizeofNlMsghdr], &h); err != nil {
				return nil, err
			}
			if h.Len < unix.SizeofNlMsghdr || int(h.Len) > len(b) {
				return nil, errors.New("netlink: a message of impossible length")
			}
			payload := b[unix.SizeofNlMsghdr:h.Len]
			b = b[min(len(b), int(h.Len+3)&^3):]
			switch {
			case h.Seq != s.seq:
			case h.Type == unix.NLMSG_DONE:
				return out, nil
			case h.Type == unix.NLMSG_ERROR:
				if len(payload) < 4 {
					return nil, errors.New("netlink: a short answer")
				}
				if code := int32(binary.NativeEndian.Uint32(payload)); code != 0 {
					return nil, unix.Errno(-code)
				}
				return out, nil
			default:
				out = append(out, bytes.Clone(payload))
			}
		}
	}
}
