package main

import (
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/dtcp-relay/dtcp/internal/rendezvous"
	"github.com/dtcp-relay/dtcp/xmpp/jid"
	"github.com/dtcp-relay/dtcp/xmpp/stanza"
)

// standalone is the relay with an XMPP server of its own around it.
type standalone struct {
	server *rendezvous.Server
	dir    string
	log    *logger

	mu      sync.Mutex // of what follows; held while the file is read
	served  accounts
	version fs.FileInfo // of the file that was read last, nil if there was none

	done   chan struct{} // closed by close
	polled chan struct{} // closed when poll has ended
}

func (s *standalone) start(d *daemon) error {
	c := d.config.Load()
	s.dir, s.log = c.State, d.log
	certificate, err := keptCertificate(c.State, "xmpp.pem", c.Standalone.Domain, time.Now())
	if err != nil {
		return fmt.Errorf("the XMPP server's certificate: %w", err)
	}
	s.server, err = rendezvous.New(rendezvous.Config{Domain: c.Standalone.Domain, Certificate: certificate, Trace: s.trace(d)})
	if err != nil {
		return err
	}
	_, err = s.server.Attach(c.domain.Domain(), func(q stanza.IQ) stanza.IQ {
		d.metrics.asked(q)
		return d.relay.Answer(q)
	})
	if err != nil {
		return err
	}
	if err := s.reload(); err != nil {
		return err
	}
	first := len(d.ports)
	for _, address := range c.Standalone.Listen {
		if err := d.listen(xmppPort, address); err != nil {
			return err
		}
	}
	for _, p := range d.ports[first:] {
		d.serve(p, s.server.Serve)
	}
	s.done, s.polled = make(chan struct{}), make(chan struct{})
	// Owned by the server's side; close ends it and waits.
	go s.poll()
	s.greet(c, d.ports[first:], pinOf(certificate))
	return nil
}

// greet tells what users have to type.
func (s *standalone) greet(c *config, ports []*port, pin string) {
	public := c.Standalone.Public
	if public == "" {
		own, _ := interfaceAddresses()
		for _, p := range ports {
			if found := reachable(p.listener.Addr(), own); len(found) > 0 && public == "" {
				public = found[0].String()
			}
		}
	}
	if public == "" {
		_, number, _ := net.SplitHostPort(ports[0].address)
		public = net.JoinHostPort(c.Standalone.Domain, number)
	}
	if len(s.served) == 0 {
		s.log.say("there are no accounts yet: dtcpd account add NAME --data %s", c.State)
	}
	s.log.say("users log in by")
	s.log.say("  dtcp login NAME@%s --server %s --trust %s", c.Standalone.Domain, public, pin)
}

func (s *standalone) trace(d *daemon) *rendezvous.Trace {
	return &rendezvous.Trace{
		Login: func(who jid.JID, remote net.Addr, mechanism string) {
			d.metrics.logins.Inc()
			s.log.trace("%v logged in from %v by %s", who, remote, mechanism)
		},
		Logout: func(who jid.JID, why error) { s.log.trace("%v logged out (%v)", who, why) },
		Denied: func(name string, remote net.Addr, why error) {
			d.metrics.denied.Inc()
			s.log.say("login denied: %.100q from %v: %v", name, remote, why)
		},
		Refused: func(remote net.Addr, why error) {
			s.log.trace("connection from %v ended before its login: %v", remote, why)
		},
	}
}

// poll looks whether a command has changed the accounts.
func (s *standalone) poll() {
	defer close(s.polled)
	ticker := time.NewTicker(accountPoll)
	defer ticker.Stop()
	said := ""
	for {
		select {
		case <-ticker.C:
		case <-s.done:
			return
		}
		switch err := s.reload(); {
		case err == nil:
			said = ""
		case err.Error() != said: // once, not four times a second
			said = err.Error()
			s.log.say("accounts: %v; those that were are served", err)
		}
	}
}

// reload reads the accounts if their file is another than the last time.
func (s *standalone) reload() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	info, err := os.Stat(filepath.Join(s.dir, accountFile))
	if errors.Is(err, fs.ErrNotExist) {
		info, err = nil, nil
	}
	if err != nil {
		return err
	}
	if s.served != nil && (info == nil) == (s.version == nil) &&
		(info == nil || os.SameFile(info, s.version) && info.ModTime().Equal(s.version.ModTime())) {
		return nil
	}
	a, err := readAccounts(s.dir)
	if err != nil {
		return err
	}
	if err := a.serve(s.server, s.served); err != nil {
		return err
	}
	if s.served != nil {
		s.log.say("accounts changed: there are %d", len(a))
	}
	s.served, s.version = a, info
	return nil
}

// trouble: whoever can log in can ask.
func (s *standalone) trouble() string { return "" }

func (s *standalone) close() {
	if s.done != nil {
		close(s.done)
		<-s.polled
	}
	if s.server != nil {
		_ = s.server.Close() // is always nil
	}
}
