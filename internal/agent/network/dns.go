package network

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"skerry.dev/skerry/internal/kernel/errs"
)

const (
	// dnsQueries is how many queries of one slot are under way at once; more are
	// dropped, as a busy resolver does.
	dnsQueries = 64
	// dnsStreams is how many TCP connections a slot may hold to the forwarder.
	dnsStreams = 8
	// dnsTry is the time one upstream has, dnsIdle the longest silence on TCP.
	dnsTry       = 2 * time.Second
	dnsIdle      = 10 * time.Second
	maxDNSQuery  = 4096
	maxDNSAnswer = 65535
)

// forwarder answers on one slot's gateway, in the host's namespace, so that a
// resolver only the host can reach works too. A message is passed on as it is;
// each goes out from a socket of its own.
type forwarder struct {
	slot      *slot
	upstreams *upstreams
	udp       *net.UDPConn
	tcp       net.Listener
	ctx       context.Context // of the forwarder's life; ends upstream calls
	stop      context.CancelFunc
	wg        sync.WaitGroup
	queries   chan struct{}
	streams   chan struct{}
	buffers   *sync.Pool
}

// serveDNS starts the forwarder of a slot whose link is up, once.
func (m *Manager) serveDNS(s *slot) error {
	s.open.Store(s.owner != "" && s.policy.Internet)
	link := m.tag.link(s.index)
	// Bound to the link as well: even without rules nobody else is answered.
	lc := net.ListenConfig{Control: func(_, _ string, c syscall.RawConn) error {
		var bound error
		err := c.Control(func(fd uintptr) { bound = unix.BindToDevice(int(fd), link) })
		return errors.Join(err, bound)
	}}
	at := netip.AddrPortFrom(s.addr.gateway, dnsPort).String()
	ctx, stop := context.WithCancel(context.Background())
	packet, err := lc.ListenPacket(ctx, "udp4", at)
	if err != nil {
		stop()
		return dnsListenError(at, err)
	}
	tcp, err := lc.Listen(ctx, "tcp4", at)
	if err != nil {
		stop()
		packet.Close()
		return dnsListenError(at, err)
	}
	f := &forwarder{
		slot: s, upstreams: m.upstreams, udp: packet.(*net.UDPConn), tcp: tcp, ctx: ctx, stop: stop,
		queries: make(chan struct{}, dnsQueries), streams: make(chan struct{}, dnsStreams),
		buffers: &sync.Pool{New: func() any { b := make([]byte, maxDNSAnswer); return &b }},
	}
	f.wg.Add(2)
	go f.servePackets()
	go f.serveStreams()
	m.mu.Lock()
	closed := m.closed
	if !closed {
		s.dns = f
	}
	m.mu.Unlock()
	if closed {
		f.close()
	}
	return nil
}

func dnsListenError(at string, err error) error {
	if errors.Is(err, unix.EADDRINUSE) {
		return errs.FailedPrecondition("dns_port_taken", fmt.Sprintf(
			"Another DNS server on this machine listens on port 53 of every address, so %s is taken. Bind it to its own addresses.", at)).Because(err)
	}
	return fmt.Errorf("listening for DNS on %s: %w", at, err)
}

// stopDNS ends the forwarder of a slot and waits for it.
func (m *Manager) stopDNS(s *slot) {
	m.mu.Lock()
	f := s.dns
	s.dns = nil
	m.mu.Unlock()
	if f != nil {
		f.close()
	}
}

func (f *forwarder) close() {
	f.stop()
	f.udp.Close()
	f.tcp.Close()
	f.wg.Wait()
}

func (f *forwarder) servePackets() {
	defer f.wg.Done()
	buf := make([]byte, maxDNSQuery)
	for {
		n, from, err := f.udp.ReadFromUDPAddrPort(buf)
		if err != nil {
			if errors.Is(err, net.ErrClosed) {
				return
			}
			continue // an ICMP error of an earlier answer
		}
		if from.Addr().Unmap() != f.slot.addr.guest {
			continue
		}
		q := question(buf[:n])
		if q == nil {
			continue
		}
		if !f.slot.open.Load() {
			_, _ = f.udp.WriteToUDPAddrPort(refusal(q, dnsRefused), from)
			continue
		}
		select {
		case f.queries <- struct{}{}:
		default:
			continue
		}
		query := append([]byte(nil), buf[:n]...)
		f.wg.Add(1)
		go func() {
			defer f.wg.Done()
			defer func() { <-f.queries }()
			answer := f.buffers.Get().(*[]byte)
			defer f.buffers.Put(answer)
			n, err := f.ask("udp", query, *answer)
			if err != nil {
				_, _ = f.udp.WriteToUDPAddrPort(refusal(question(query), dnsServFail), from)
				return
			}
			_, _ = f.udp.WriteToUDPAddrPort((*answer)[:n], from)
		}()
	}
}

func (f *forwarder) serveStreams() {
	defer f.wg.Done()
	for {
		c, err := f.tcp.Accept()
		if err != nil {
			if errors.Is(err, net.ErrClosed) || !f.pause() {
				return
			}
			continue
		}
		peer, ok := c.RemoteAddr().(*net.TCPAddr)
		if !ok || peer.AddrPort().Addr().Unmap() != f.slot.addr.guest {
			c.Close()
			continue
		}
		select {
		case f.streams <- struct{}{}:
		default:
			c.Close()
			continue
		}
		f.wg.Add(1)
		go func() {
			defer f.wg.Done()
			defer func() { <-f.streams }()
			defer c.Close()
			// The end of the forwarder ends the connection.
			defer context.AfterFunc(f.ctx, func() { c.Close() })()
			f.serveStream(c)
		}()
	}
}

// pause waits a moment after a failed accept; false when the forwarder ends.
func (f *forwarder) pause() bool {
	t := time.NewTimer(50 * time.Millisecond)
	defer t.Stop()
	select {
	case <-f.ctx.Done():
		return false
	case <-t.C:
		return true
	}
}

// serveStream answers queries one after the other until the guest is silent.
func (f *forwarder) serveStream(c net.Conn) {
	answer := f.buffers.Get().(*[]byte)
	defer f.buffers.Put(answer)
	for {
		if err := c.SetDeadline(time.Now().Add(dnsIdle)); err != nil {
			return
		}
		query := make([]byte, maxDNSQuery)
		n, err := readFrame(c, query)
		if err != nil {
			return
		}
		query = query[:n]
		q := question(query)
		if q == nil {
			return
		}
		if !f.slot.open.Load() {
			err = writeFrame(c, refusal(q, dnsRefused))
		} else if n, askErr := f.ask("tcp", query, *answer); askErr != nil {
			err = writeFrame(c, refusal(q, dnsServFail))
		} else {
			err = writeFrame(c, (*answer)[:n])
		}
		if err != nil {
			return
		}
	}
}

// ask passes the query to the upstreams in turn until one answers.
func (f *forwarder) ask(network string, query, answer []byte) (int, error) {
	err := errors.New("network: no DNS upstream is known")
	for _, up := range f.upstreams.current() {
		var n int
		if n, err = f.askOne(network, up, query, answer); err == nil {
			return n, nil
		}
		if f.ctx.Err() != nil {
			break
		}
	}
	return 0, err
}

func (f *forwarder) askOne(network string, up netip.AddrPort, query, answer []byte) (int, error) {
	ctx, cancel := context.WithTimeout(f.ctx, dnsTry)
	defer cancel()
	var d net.Dialer
	c, err := d.DialContext(ctx, network, up.String())
	if err != nil {
		return 0, err
	}
	defer c.Close()
	defer context.AfterFunc(ctx, func() { c.Close() })()
	if network == "tcp" {
		if err := writeFrame(c, query); err != nil {
			return 0, err
		}
		n, err := readFrame(c, answer)
		if err == nil && !answers(answer[:n], question(query)) {
			err = errors.New("network: the upstream answered something else")
		}
		return n, err
	}
	if _, err := c.Write(query); err != nil {
		return 0, err
	}
	for {
		n, err := c.Read(answer)
		if err != nil {
			return 0, err
		}
		// Anything else is a forgery or a stray: keep waiting.
		if answers(answer[:n], question(query)) {
			return n, nil
		}
	}
}

// readFrame reads one message with its length in front.
func readFrame(r io.Reader, buf []byte) (int, error) {
	var size [2]byte
	if _, err := io.ReadFull(r, size[:]); err != nil {
		return 0, err
	}
	n := int(binary.BigEndian.Uint16(size[:]))
	if n > len(buf) {
		return 0, errors.New("network: DNS message too long")
	}
	return io.ReadFull(r, buf[:n])
}

// writeFrame writes one message with its length in front, in one piece.
func writeFrame(w io.Writer, msg []byte) error {
	_, err := w.Write(append(binary.BigEndian.AppendUint16(make([]byte, 0, 2+len(msg)), uint16(len(msg))), msg...))
	return err
}
