package xmpp

import (
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/dtcp-relay/dtcp/xmpp/stanza"
)

// ErrConflict is wrapped by the error of a session whose resource another
// client has taken, or will not give up. The session does not log in again:
// the two would throw each other out for ever (RFC 6120, 4.9.3.3 and 7.7.2.2).
var ErrConflict = errors.New("another client uses this resource of the account")

// ErrClosed is wrapped by what [Session.Err] returns after [Session.Close].
var ErrClosed = errors.New("session closed")

// AuthError is the server's refusal of a login, or ours of the server's proof
// (RFC 6120, 6.5). The session does not try again, unless Temporary.
type AuthError struct {
	Mechanism string   // tried, "" if there was none to try; "handshake" of a component
	Offered   []string // by the server
	Condition string   // of the SASL failure, such as not-authorized; "" if Err
	Text      string   // of the server
	Err       error    // why this side gave up, nil if the server did
}

func (e *AuthError) Error() string {
	var b strings.Builder
	switch e.Condition {
	case "":
		b.WriteString("login failed")
	case "not-authorized":
		if e.Mechanism == componentHandshake {
			b.WriteString("wrong secret, or a component that the server does not know")
			break
		}
		b.WriteString("wrong user name or password")
	case "account-disabled":
		b.WriteString("the account is disabled")
	case "credentials-expired":
		b.WriteString("the password has expired")
	case "temporary-auth-failure":
		b.WriteString("the server cannot check the password at the moment")
	default:
		b.WriteString("the server refuses the login")
	}
	if e.Err != nil {
		fmt.Fprintf(&b, ": %v", e.Err)
	}
	var detail []string
	if e.Condition != "" {
		detail = append(detail, e.Condition)
	}
	if e.Mechanism != "" {
		detail = append(detail, "by "+e.Mechanism)
	}
	if e.Text != "" {
		detail = append(detail, fmt.Sprintf("the server says %.200q", e.Text))
	}
	if e.Mechanism == "" || e.Condition == "invalid-mechanism" || e.Condition == "mechanism-too-weak" {
		detail = append(detail, "offered: "+listed(e.Offered))
	}
	if len(detail) > 0 {
		fmt.Fprintf(&b, " (%s)", strings.Join(detail, "; "))
	}
	return b.String()
}

// Unwrap returns e.Err.
func (e *AuthError) Unwrap() error { return e.Err }

// Temporary reports whether the same login may succeed later.
func (e *AuthError) Temporary() bool { return e.Condition == "temporary-auth-failure" }

func listed(names []string) string {
	if len(names) == 0 {
		return "nothing"
	}
	return fmt.Sprintf("%.200s", strings.Join(names, ", "))
}

// TLSError says that the certificate of a server was not accepted, and what
// was presented, so that the user can judge.
type TLSError struct {
	Domain      string            // the certificate should have been for
	Certificate *x509.Certificate // presented; nil if none
	Err         error             // why it was not accepted
}

func (e *TLSError) Error() string {
	s := fmt.Sprintf("certificate not accepted for %s: %v", e.Domain, e.Err)
	c := e.Certificate
	if c == nil {
		return s
	}
	names := append([]string(nil), c.DNSNames...)
	for _, ip := range c.IPAddresses {
		names = append(names, ip.String())
	}
	return fmt.Sprintf("%s (presented: subject %.120q, names %s, issuer %.120q, valid from %s to %s, %s)", s,
		c.Subject, listed(names), c.Issuer, c.NotBefore.Format(time.DateOnly), c.NotAfter.Format(time.DateOnly), e.Fingerprint())
}

// Unwrap returns e.Err: an error of package x509, for example.
func (e *TLSError) Unwrap() error { return e.Err }

// Fingerprint returns the SHA-256 of the certificate in the form of
// [Config].Pin, or "".
func (e *TLSError) Fingerprint() string {
	if e.Certificate == nil {
		return ""
	}
	sum := sha256.Sum256(e.Certificate.Raw)
	return "sha256:" + hex.EncodeToString(sum[:])
}

// ConnectError lists everything that was tried to reach a server. errors.As
// and errors.Is look into every attempt.
type ConnectError struct {
	Domain   string
	Attempts []Attempt // in order
}

// Attempt is one address that was tried, or one question to the DNS.
type Attempt struct {
	Address string // "host:port", or the name of an SRV record
	Mode    string // "direct TLS", "STARTTLS" or "DNS"
	Err     error
}

func (e *ConnectError) Error() string {
	var b strings.Builder
	fmt.Fprintf(&b, "no login at the server of %s", e.Domain)
	for i, a := range e.Attempts {
		b.WriteString([]string{": ", "; "}[min(i, 1)])
		fmt.Fprintf(&b, "%s (%s): %v", a.Address, a.Mode, a.Err)
	}
	return b.String()
}

// Unwrap returns the errors of the attempts.
func (e *ConnectError) Unwrap() []error {
	errs := make([]error, len(e.Attempts))
	for i, a := range e.Attempts {
		errs[i] = a.Err
	}
	return errs
}

// StreamError is the error by which a server ends a stream (RFC 6120, 4.9).
type StreamError struct {
	Condition string // such as system-shutdown
	Text      string
	Host      string // of see-other-host
}

func (e *StreamError) Error() string {
	s := "the server ended the stream: " + e.Condition
	if e.Condition == "conflict" {
		s = ErrConflict.Error() + ": " + s
	}
	if e.Text != "" {
		s += fmt.Sprintf(" (the server says %.200q)", e.Text)
	}
	return s
}

// Is makes a conflict wrap [ErrConflict].
func (e *StreamError) Is(target error) bool {
	return target == ErrConflict && e.Condition == "conflict"
}

const nsStreamErrors = "urn:ietf:params:xml:ns:xmpp-streams"

func parseStreamError(e stanza.Element) *StreamError {
	s := &StreamError{Condition: "undefined-condition"}
	for _, c := range e.Elements() {
		switch {
		case c.Name.Space != nsStreamErrors:
		case c.Name.Local == "text":
			s.Text = c.Text()
		default:
			s.Condition = c.Name.Local
			if s.Condition == "see-other-host" {
				s.Host = strings.TrimSpace(c.Text())
			}
		}
	}
	return s
}

// lostError is what requests get whose connection was lost before the answer.
type lostError struct {
	err       error
	permanent bool
}

func (e *lostError) Error() string   { return fmt.Sprintf("connection lost: %v", e.err) }
func (e *lostError) Unwrap() error   { return e.err }
func (e *lostError) Temporary() bool { return !e.permanent }

// LoggedOutError is what requests get that were not sent, because the session
// was not logged in while their context lasted.
type LoggedOutError struct {
	Lost error // why the last login was lost, or the latest attempt at another failed; nil if that just happened
	Err  error // of the context
}

func (e *LoggedOutError) Error() string {
	if e.Lost == nil {
		return fmt.Sprintf("xmpp: not logged in: %v", e.Err)
	}
	return fmt.Sprintf("xmpp: not logged in: %v (%v)", e.Err, e.Lost)
}

// Unwrap returns e.Err.
func (e *LoggedOutError) Unwrap() error { return e.Err }

// permanent reports whether logging in again is of no use. A component never
// gives up: its server may be mended while it waits.
func (s *Session) permanent(err error) bool {
	if s.component != nil {
		return errors.Is(err, ErrClosed)
	}
	var auth *AuthError
	if errors.As(err, &auth) {
		return !auth.Temporary()
	}
	return errors.Is(err, ErrConflict) || errors.Is(err, ErrClosed)
}
