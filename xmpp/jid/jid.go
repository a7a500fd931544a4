// Package jid holds XMPP addresses (RFC 7622) as small comparable values, in
// the manner of [net/netip.Addr].
//
// A [JID] is made by [Parse] or [New] only, which enforce the PRECIS profiles
// that RFC 7622 names: UsernameCaseMapped for the localpart, IDNA2008 for the
// domainpart, OpaqueString for the resourcepart. Two JIDs that denote the same
// entity are therefore equal under ==, and a JID may be a map key.
//
// The package does no I/O and keeps no state.
package jid

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"unicode/utf8"

	"golang.org/x/net/idna"
	"golang.org/x/text/secure/precis"
	"golang.org/x/text/unicode/norm"
)

// MaxPart is the limit in bytes of each part of a JID (RFC 7622, 3.2 to 3.4).
const MaxPart = 1023

// maxJID bounds what Parse looks at: three parts and the two separators.
const maxJID = 3*MaxPart + 2

// JID is an XMPP address: localpart@domainpart/resourcepart, where the first
// and the last may be missing. The zero JID is no address; it is what an
// absent 'to' or 'from' is. JIDs are values: compare them with ==, share them
// between goroutines.
type JID struct {
	local, domain, resource string
}

// Parse reads an address as RFC 7622, 3.1 says: what follows the first '/' is
// the resourcepart, what precedes the first '@' before it is the localpart.
// The error says which part is at fault and why.
func Parse(s string) (JID, error) {
	if len(s) > maxJID {
		return JID{}, fmt.Errorf("jid: address of %d bytes is longer than %d", len(s), maxJID)
	}
	rest, resource, hasResource := strings.Cut(s, "/")
	local, domain, hasLocal := strings.Cut(rest, "@")
	if !hasLocal {
		local, domain = "", rest
	}
	if hasLocal && local == "" {
		return JID{}, fmt.Errorf("jid: %q: nothing before the @", s)
	}
	if hasResource && resource == "" {
		return JID{}, fmt.Errorf("jid: %q: nothing after the /", s)
	}
	j, err := New(local, domain, resource)
	if err != nil {
		return JID{}, fmt.Errorf("jid: %q: %w", s, errors.Unwrap(err))
	}
	return j, nil
}

// New makes an address of its parts; local and resource may be empty.
func New(local, domain, resource string) (JID, error) {
	l, err := prepareLocal(local)
	if err != nil {
		return JID{}, fmt.Errorf("jid: %w", fmt.Errorf("localpart: %w", err))
	}
	d, err := prepareDomain(domain)
	if err != nil {
		return JID{}, fmt.Errorf("jid: %w", fmt.Errorf("domainpart: %w", err))
	}
	r, err := prepareResource(resource)
	if err != nil {
		return JID{}, fmt.Errorf("jid: %w", fmt.Errorf("resourcepart: %w", err))
	}
	return JID{l, d, r}, nil
}

// MustParse is [Parse] for constants and tests: it panics on an error.
func MustParse(s string) JID {
	j, err := Parse(s)
	if err != nil {
		panic(err)
	}
	return j
}

// Local returns the localpart, or "".
func (j JID) Local() string { return j.local }

// Domain returns the domainpart; "" only for the zero JID.
func (j JID) Domain() string { return j.domain }

// Resource returns the resourcepart, or "".
func (j JID) Resource() string { return j.resource }

// IsZero reports whether j is the zero JID, which is no address.
func (j JID) IsZero() bool { return j == JID{} }

// IsBare reports whether j is an address without a resourcepart.
func (j JID) IsBare() bool { return j.resource == "" && !j.IsZero() }

// IsFull reports whether j has a resourcepart.
func (j JID) IsFull() bool { return j.resource != "" }

// Bare returns j without its resourcepart.
func (j JID) Bare() JID { return JID{j.local, j.domain, ""} }

// Server returns the address of j's domain.
func (j JID) Server() JID { return JID{"", j.domain, ""} }

// WithResource returns the bare JID of j with the given resourcepart.
func (j JID) WithResource(resource string) (JID, error) {
	r, err := prepareResource(resource)
	if err != nil {
		return JID{}, fmt.Errorf("jid: resourcepart: %w", err)
	}
	return JID{j.local, j.domain, r}, nil
}

// String returns the address in its canonical form; "" for the zero JID.
func (j JID) String() string {
	n := len(j.domain)
	if j.local != "" {
		n += len(j.local) + 1
	}
	if j.resource != "" {
		n += len(j.resource) + 1
	}
	b := make([]byte, 0, n)
	if j.local != "" {
		b = append(append(b, j.local...), '@')
	}
	b = append(b, j.domain...)
	if j.resource != "" {
		b = append(append(b, '/'), j.resource...)
	}
	return string(b)
}

// MarshalText implements [encoding.TextMarshaler].
func (j JID) MarshalText() ([]byte, error) { return []byte(j.String()), nil }

// UnmarshalText implements [encoding.TextUnmarshaler]; empty text is the zero JID.
func (j *JID) UnmarshalText(text []byte) error {
	if len(text) == 0 {
		*j = JID{}
		return nil
	}
	parsed, err := Parse(string(text))
	if err != nil {
		return err
	}
	*j = parsed
	return nil
}

// forbiddenLocal are the characters that RFC 7622, 3.3.1 excludes from a
// localpart beyond what UsernameCaseMapped does.
const forbiddenLocal = "\"&'/:<>@"

func prepareLocal(s string) (string, error) {
	if s == "" {
		return "", nil
	}
	p, err := precis.UsernameCaseMapped.String(s)
	if err != nil {
		return "", err
	}
	if i := strings.IndexAny(p, forbiddenLocal); i >= 0 {
		return "", fmt.Errorf("%q is not allowed", p[i])
	}
	return bounded(p)
}

func prepareResource(s string) (string, error) {
	if s == "" {
		return "", nil
	}
	p, err := precis.OpaqueString.String(s)
	if err != nil {
		return "", err
	}
	return bounded(p)
}

// domainProfile is IDNA2008 lookup (RFC 5891, 5) with the rules of host names:
// an underscore, say, is refused.
var domainProfile = idna.New(idna.MapForLookup(), idna.BidiRule(), idna.StrictDomainName(true))

func prepareDomain(s string) (string, error) {
	if s == "" {
		return "", errors.New("is empty")
	}
	if !utf8.ValidString(s) {
		return "", errors.New("is not UTF-8")
	}
	// An IP literal is a domainpart as it stands (RFC 7622, 3.2): IPv4 bare,
	// IPv6 in brackets. IDNA would refuse the brackets.
	if inner, ok := strings.CutPrefix(s, "["); ok {
		inner, closed := strings.CutSuffix(inner, "]")
		a, err := netip.ParseAddr(inner)
		if !closed || err != nil || !a.Is6() || a.Zone() != "" {
			return "", errors.New("is no IPv6 address in brackets")
		}
		return "[" + a.String() + "]", nil
	}
	if a, err := netip.ParseAddr(s); err == nil && a.Is4() {
		return a.String(), nil
	}
	s = strings.TrimSuffix(s, ".")
	d, err := domainProfile.ToUnicode(s)
	if err != nil {
		return "", err
	}
	if slices.Contains(strings.Split(d, "."), "") {
		return "", errors.New("has an empty label")
	}
	return bounded(norm.NFC.String(d))
}

func bounded(p string) (string, error) {
	switch {
	case p == "":
		return "", errors.New("is empty")
	case len(p) > MaxPart:
		return "", fmt.Errorf("is longer than %d bytes", MaxPart)
	}
	return p, nil
}
