package rendezvous

import (
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"errors"
	"fmt"
	"slices"

	"github.com/xdg-go/scram"

	"github.com/dtcp-relay/dtcp/xmpp/jid"
)

// account is a user of the domain. Its fields are guarded by Server.mu.
type account struct {
	bare    jid.JID
	keys    keys
	roster  map[jid.JID]*contact
	streams map[string]*stream // by resource
}

// keys are what checks a password (RFC 5802, 3), for each hash. The slices in
// them are never changed, only replaced.
type keys struct {
	sha1, sha256 scram.StoredCredentials
}

// Errors of the methods that name an account.
var (
	ErrNoAccount    = errors.New("rendezvous: no such account")
	ErrManyAccounts = errors.New("rendezvous: too many accounts")
)

// SetAccount adds the account name@domain, or gives it a new password if it
// exists: its roster and its open streams stay. name is a localpart; its
// spellings that are equal under RFC 7622, 3.3 are one account.
func (s *Server) SetAccount(name, password string) error {
	bare, err := jid.New(name, s.domain.Domain(), "")
	if err != nil {
		return fmt.Errorf("rendezvous: %w", err)
	}
	if bare.Local() == "" || password == "" {
		return errors.New("rendezvous: an account needs a name and a password")
	}
	k, err := newKeys(password, s.config.Iterations)
	if err != nil {
		return fmt.Errorf("rendezvous: %w", err)
	}
	return s.setKeys(bare, k)
}

// SetCredentials is SetAccount with what was kept of a password.
func (s *Server) SetCredentials(name string, c Credentials) error {
	bare, err := jid.New(name, s.domain.Domain(), "")
	switch {
	case err != nil:
		return fmt.Errorf("rendezvous: %w", err)
	case bare.Local() == "" || c.keys.sha1.Iters == 0:
		return errors.New("rendezvous: an account needs a name and credentials")
	}
	return s.setKeys(bare, c.keys)
}

func (s *Server) setKeys(bare jid.JID, k keys) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if a := s.accounts[bare.Local()]; a != nil {
		a.keys = k
		return nil
	}
	if len(s.accounts) >= s.limits.accounts {
		return ErrManyAccounts
	}
	s.accounts[bare.Local()] = &account{
		bare:    bare,
		keys:    k,
		roster:  make(map[jid.JID]*contact),
		streams: make(map[string]*stream),
	}
	return nil
}

// RemoveAccount removes an account, ends its streams with <not-authorized/>
// and cancels its subscriptions. [ErrNoAccount] says that there was none.
func (s *Server) RemoveAccount(name string) error {
	bare, err := jid.New(name, s.domain.Domain(), "")
	if err != nil {
		return fmt.Errorf("rendezvous: %w", err)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	a := s.accounts[bare.Local()]
	if a == nil {
		return ErrNoAccount
	}
	for _, st := range a.streams {
		st.end(&streamError{condition: "not-authorized", text: "the account was removed"})
	}
	for peer := range a.roster {
		s.dismiss(a, peer)
	}
	delete(s.accounts, bare.Local())
	return nil
}

// Accounts returns the names of the accounts, sorted.
func (s *Server) Accounts() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	names := make([]string, 0, len(s.accounts))
	for name := range s.accounts {
		names = append(names, name)
	}
	slices.Sort(names)
	return names
}

// account returns the account that j belongs to, or nil. s.mu is held.
func (s *Server) account(j jid.JID) *account {
	if j.Domain() != s.domain.Domain() {
		return nil
	}
	return s.accounts[j.Local()]
}

// newKeys derives the keys of a password, with a salt of their own each.
func newKeys(password string, iterations int) (keys, error) {
	derive := func(h scram.HashGeneratorFcn) (scram.StoredCredentials, error) {
		salt := make([]byte, 16)
		rand.Read(salt)
		return deriveKey(h, password, scram.KeyFactors{Salt: string(salt), Iters: iterations})
	}
	var k keys
	var err error
	if k.sha1, err = derive(scram.SHA1); err != nil {
		return keys{}, err
	}
	k.sha256, err = derive(scram.SHA256)
	return k, err
}

func deriveKey(h scram.HashGeneratorFcn, password string, f scram.KeyFactors) (scram.StoredCredentials, error) {
	c, err := h.NewClient("", password, "")
	if err != nil {
		return scram.StoredCredentials{}, errors.New("the password holds characters that SASLprep (RFC 4013) forbids")
	}
	return c.GetStoredCredentialsWithError(f)
}

// credentials returns the keys of the account name, as a client spelt it, for
// one hash. For an account that does not exist they are made up, the same each
// time, so that asking does not tell; no password fits them.
func (s *Server) credentials(name string, pick func(keys) scram.StoredCredentials) scram.StoredCredentials {
	bare, err := jid.New(name, s.domain.Domain(), "")
	if err == nil {
		name = bare.Local()
	}
	invent := func(what string) []byte {
		m := hmac.New(sha256.New, s.secret)
		m.Write([]byte(what + "\x00" + name))
		return m.Sum(nil)
	}
	fake := func(hash string, size int) scram.StoredCredentials {
		return scram.StoredCredentials{
			KeyFactors: scram.KeyFactors{Salt: string(invent(hash + " salt")[:16]), Iters: s.config.Iterations},
			StoredKey:  invent(hash + " stored key")[:size],
			ServerKey:  invent(hash + " server key")[:size],
		}
	}
	// Made up in any case, so that time does not tell either.
	k := keys{sha1: fake("sha-1", 20), sha256: fake("sha-256", 32)}
	s.mu.Lock()
	defer s.mu.Unlock()
	if a := s.accounts[name]; err == nil && a != nil {
		k = a.keys
	}
	return pick(k)
}
