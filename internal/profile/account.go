package profile

import (
	"errors"
	"fmt"
	"slices"

	"github.com/dtcp-relay/dtcp"
	"github.com/dtcp-relay/dtcp/xmpp/jid"
)

// ErrNoAccount says that an account is not among those remembered.
var ErrNoAccount = errors.New("profile: no such account is remembered")

// Account is what it takes to log in again. Only JID and Password are always
// set.
type Account struct {
	JID      jid.JID          // bare
	Password string           //
	Server   string           // "host:port" to connect to; "": found by DNS
	CA       string           // certificates in PEM that replace the system's roots; "": those
	Pin      dtcp.Fingerprint // the one certificate to accept of the server; zero: any good one
}

// storedAccount is Account as it lies in the file.
type storedAccount struct {
	JID      jid.JID `json:"jid"`
	Password string  `json:"password"`
	Server   string  `json:"server,omitempty"`
	CA       string  `json:"ca,omitempty"`
	Pin      string  `json:"pin,omitempty"`
}

type storedAccounts struct {
	Accounts []storedAccount `json:"accounts"` // last login first
}

// Accounts returns the accounts remembered, the default, which is that of the
// last login, first.
func (d *Dir) Accounts() ([]Account, error) {
	var stored storedAccounts
	if err := d.readJSON(accountsFile, &stored); err != nil {
		return nil, err
	}
	accounts := make([]Account, 0, len(stored.Accounts))
	for _, s := range stored.Accounts {
		a := Account{JID: s.JID, Password: s.Password, Server: s.Server, CA: s.CA}
		if !s.JID.IsBare() {
			return nil, d.damaged(accountsFile, fmt.Errorf("%q is no bare address", s.JID))
		}
		if s.Pin != "" {
			var err error
			if a.Pin, err = dtcp.ParseFingerprint(s.Pin); err != nil {
				return nil, d.damaged(accountsFile, err)
			}
		}
		accounts = append(accounts, a)
	}
	return accounts, nil
}

// Account returns the account of a JID, whose resource does not matter, or the
// default one for the zero JID. The error is [ErrNoAccount] if there is none.
func (d *Dir) Account(who jid.JID) (Account, error) {
	accounts, err := d.Accounts()
	if err != nil {
		return Account{}, err
	}
	for _, a := range accounts {
		if who.IsZero() || a.JID == who.Bare() {
			return a, nil
		}
	}
	return Account{}, ErrNoAccount
}

// Remember keeps an account, in place of one with the same bare JID, and makes
// it the default.
func (d *Dir) Remember(a Account) error {
	a.JID = a.JID.Bare()
	if a.JID.IsZero() {
		return errors.New("profile: an account needs an address")
	}
	return d.changeAccounts(func(accounts []Account) ([]Account, error) {
		accounts = slices.DeleteFunc(accounts, func(old Account) bool { return old.JID == a.JID })
		return slices.Insert(accounts, 0, a), nil
	})
}

// Forget removes the account of a JID and its password. The error is
// [ErrNoAccount] if there is none. Certificate and peers stay.
func (d *Dir) Forget(who jid.JID) error {
	return d.changeAccounts(func(accounts []Account) ([]Account, error) {
		kept := slices.DeleteFunc(slices.Clone(accounts), func(a Account) bool { return a.JID == who.Bare() })
		if len(kept) == len(accounts) {
			return nil, ErrNoAccount
		}
		return kept, nil
	})
}

func (d *Dir) changeAccounts(f func([]Account) ([]Account, error)) error {
	return d.change(func() error {
		accounts, err := d.Accounts()
		if err != nil {
			return err
		}
		if accounts, err = f(accounts); err != nil {
			return err
		}
		stored := storedAccounts{Accounts: []storedAccount{}}
		for _, a := range accounts {
			s := storedAccount{JID: a.JID, Password: a.Password, Server: a.Server, CA: a.CA}
			if !a.Pin.IsZero() {
				s.Pin = a.Pin.String()
			}
			stored.Accounts = append(stored.Accounts, s)
		}
		return d.writeJSON(accountsFile, stored)
	})
}
