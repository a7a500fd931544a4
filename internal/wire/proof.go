package wire

import (
	"crypto/subtle"
	"crypto/tls"
	"encoding/base64"
	"errors"
	"slices"
	"strings"
)

// Parameters of the proof (Section 2 of protocol.md).
const (
	exporterLabel = "EXPORTER-dtcp-session"
	proofSize     = 32
)

// Session is what both ends must agree on for a nomination to be valid.
type Session struct {
	RequesterKey, ResponderKey string
	Requester, Responder       string // full JIDs, as the servers stamped them
	Service                    string
	Features                   []string // in force, that is, sent by both
}

// Context returns the context value of the TLS exporter. No field can hold a
// NUL, so that no two sessions have the same context.
func (s Session) Context() []byte {
	fields := []string{s.RequesterKey, s.ResponderKey, s.Requester, s.Responder, s.Service}
	if len(s.Features) > 0 {
		features := slices.Clone(s.Features)
		slices.Sort(features)
		fields = append(fields, strings.Join(features, " "))
	}
	return []byte(strings.Join(fields, "\x00"))
}

// Proof returns the argument of the nominating ok on the connection of state,
// whose handshake must be complete: 32 bytes of the TLS exporter (RFC 8446,
// 7.5) as base64url without padding.
func (s Session) Proof(state tls.ConnectionState) (string, error) {
	if state.Version != tls.VersionTLS13 {
		return "", errors.New("wire: a proof needs TLS 1.3")
	}
	b, err := state.ExportKeyingMaterial(exporterLabel, s.Context(), proofSize)
	if err != nil {
		return "", err
	}
	return base64.RawURLEncoding.EncodeToString(b), nil
}

// Verify reports whether argument, of a nominating ok, begins with the proof
// that belongs to this session on this connection. Words after it are for
// later versions.
func (s Session) Verify(state tls.ConnectionState, argument string) bool {
	want, err := s.Proof(state)
	if err != nil {
		return false
	}
	got, _, _ := strings.Cut(argument, " ")
	return subtle.ConstantTimeCompare([]byte(got), []byte(want)) == 1
}
