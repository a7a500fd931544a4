package profile_test

import (
	"errors"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/dtcp-relay/dtcp/internal/profile"
	"github.com/dtcp-relay/dtcp/xmpp/jid"
)

var compareJIDs = cmp.Comparer(func(a, b jid.JID) bool { return a == b })

func TestAccounts(t *testing.T) {
	d := open(t)
	if _, err := d.Account(jid.JID{}); !errors.Is(err, profile.ErrNoAccount) {
		t.Errorf("an empty directory has an account: %v", err)
	}
	first := profile.Account{JID: juliet.Bare(), Password: "sesam  ", Server: "127.0.0.1:5222", CA: "pem", Pin: mark(7)}
	second := profile.Account{JID: romeo.Bare(), Password: "x"}
	remember := func(a profile.Account) {
		t.Helper()
		if err := d.Remember(a); err != nil {
			t.Fatal(err)
		}
	}
	want := func(want ...profile.Account) {
		t.Helper()
		got, err := d.Accounts()
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(want, got, compareJIDs); diff != "" {
			t.Errorf("accounts (-want +got):\n%s", diff)
		}
	}
	full := first
	full.JID = juliet // the resource is not kept
	remember(full)
	want(first)
	remember(second)
	want(second, first)
	first.Password, first.Server = "new", ""
	remember(first)
	want(first, second)

	if got, err := d.Account(jid.JID{}); err != nil || got.JID != first.JID {
		t.Errorf("default: %v, %v", got.JID, err)
	}
	if got, err := d.Account(romeo); err != nil || got.JID != second.JID {
		t.Errorf("by a full address: %v, %v", got.JID, err)
	}
	if _, err := d.Account(jid.MustParse("tybalt@example.org")); !errors.Is(err, profile.ErrNoAccount) {
		t.Errorf("an unknown one: %v", err)
	}

	if err := d.Forget(juliet); err != nil {
		t.Fatal(err)
	}
	want(second)
	if err := d.Forget(juliet); !errors.Is(err, profile.ErrNoAccount) {
		t.Errorf("forgetting twice: %v", err)
	}
	if err := d.Forget(romeo); err != nil {
		t.Fatal(err)
	}
	if err := d.Remember(profile.Account{}); err == nil {
		t.Error("an account without an address was remembered")
	}
}

func TestCertificateIsKept(t *testing.T) {
	d := open(t)
	first, err := d.Certificate()
	if err != nil {
		t.Fatal(err)
	}
	again, err := profile.Open(d.Path())
	if err != nil {
		t.Fatal(err)
	}
	second, err := again.Certificate()
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(first.Certificate, second.Certificate); diff != "" {
		t.Errorf("another certificate the second time:\n%s", diff)
	}
	other, err := open(t).Certificate()
	if err != nil {
		t.Fatal(err)
	}
	if cmp.Equal(first.Certificate, other.Certificate) {
		t.Error("two directories have one certificate")
	}
}
