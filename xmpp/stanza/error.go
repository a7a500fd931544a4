package stanza

import (
	"encoding/xml"
	"strconv"
)

// Types of an [Error] (RFC 6120, 8.3.2).
const (
	Auth     = "auth"
	Cancel   = "cancel"
	Continue = "continue"
	Modify   = "modify"
	Wait     = "wait"
)

// Conditions of an [Error] (RFC 6120, 8.3.3): those this project sends or acts on.
const (
	BadRequest            = "bad-request"
	Conflict              = "conflict"
	FeatureNotImplemented = "feature-not-implemented"
	Forbidden             = "forbidden"
	Gone                  = "gone"
	InternalServerError   = "internal-server-error"
	ItemNotFound          = "item-not-found"
	JIDMalformed          = "jid-malformed"
	NotAcceptable         = "not-acceptable"
	NotAllowed            = "not-allowed"
	NotAuthorized         = "not-authorized"
	PolicyViolation       = "policy-violation"
	RecipientUnavailable  = "recipient-unavailable"
	RegistrationRequired  = "registration-required"
	RemoteServerNotFound  = "remote-server-not-found"
	RemoteServerTimeout   = "remote-server-timeout"
	ResourceConstraint    = "resource-constraint"
	ServiceUnavailable    = "service-unavailable"
	SubscriptionRequired  = "subscription-required"
	UndefinedCondition    = "undefined-condition"
	UnexpectedRequest     = "unexpected-request"
)

// Error is a stanza error (RFC 6120, 8.3). It is also a Go error.
type Error struct {
	Type      string
	Condition string
	Text      string // a sentence, for people; from a peer it may hold anything
	Code      int    // the number of XEP-0086, 0 when absent
}

// legacy relates the conditions to the codes and types of XEP-0086.
var legacy = []struct {
	condition string
	code      int
	kind      string
}{
	{BadRequest, 400, Modify},
	{NotAuthorized, 401, Auth},
	{RegistrationRequired, 407, Auth},
	{Forbidden, 403, Auth},
	{ItemNotFound, 404, Cancel},
	{RecipientUnavailable, 404, Wait},
	{RemoteServerNotFound, 404, Cancel},
	{NotAllowed, 405, Cancel},
	{NotAcceptable, 406, Modify},
	{RemoteServerTimeout, 504, Wait},
	{Conflict, 409, Cancel},
	{InternalServerError, 500, Wait},
	{ResourceConstraint, 500, Wait},
	{FeatureNotImplemented, 501, Cancel},
	{ServiceUnavailable, 503, Cancel},
	{Gone, 302, Modify},
	{JIDMalformed, 400, Modify},
	{SubscriptionRequired, 407, Auth},
	{UnexpectedRequest, 400, Wait},
	{PolicyViolation, 406, Modify},
	{UndefinedCondition, 500, Cancel},
}

// NewError makes an error of a condition, with the type and the code that
// XEP-0086 gives it, so that old and new receivers understand.
func NewError(condition, text string) *Error {
	e := &Error{Type: Cancel, Condition: condition, Text: text}
	for _, l := range legacy {
		if l.condition == condition {
			e.Type, e.Code = l.kind, l.code
			break
		}
	}
	return e
}

// Error implements error: the condition, and the text if there is one.
func (e *Error) Error() string {
	if e.Text == "" {
		return e.Condition
	}
	return e.Condition + ": " + e.Text
}

// Element returns e as the child of a stanza of the namespace space.
func (e *Error) Element(space string) Element {
	el := New(space, "error", New(NSStanzas, e.Condition)).With("type", e.Type)
	if e.Code != 0 {
		el = el.With("code", strconv.Itoa(e.Code))
	}
	if e.Text != "" {
		el.Children = append(el.Children, New(NSStanzas, "text", Text(e.Text)))
	}
	return el
}

// ParseError reads an <error/>. An error that names no condition gets that of
// its old code (XEP-0086), else undefined-condition.
func ParseError(el Element) *Error {
	e := &Error{Type: el.Attr("type")}
	e.Code, _ = strconv.Atoi(el.Attr("code"))
	for _, c := range el.Elements() {
		switch {
		case c.Name.Space != NSStanzas:
		case c.Name.Local == "text":
			e.Text = c.Text()
		default:
			e.Condition = c.Name.Local
		}
	}
	if e.Text == "" && e.Condition == "" {
		e.Text = el.Text()
	}
	if e.Condition == "" {
		e.Condition = UndefinedCondition
		for _, l := range legacy {
			if l.code == e.Code {
				e.Condition = l.condition
				break
			}
		}
	}
	if e.Type == "" {
		e.Type = NewError(e.Condition, "").Type
	}
	return e
}

func attrLang(lang string) xml.Attr {
	return xml.Attr{Name: xml.Name{Space: xmlNamespace, Local: "lang"}, Value: lang}
}
