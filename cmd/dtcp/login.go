package main

import (
	"context"
	"errors"
	"fmt"

	"github.com/spf13/cobra"

	"github.com/dtcp-relay/dtcp/internal/profile"
	"github.com/dtcp-relay/dtcp/xmpp/jid"
)

func (t *tool) loginCommand() *cobra.Command {
	c := &cobra.Command{
		Use:   "login JID",
		Short: "Check an account and remember it",
		Long: `login logs in to the account once. If that works, the account is remembered and
becomes the default, with --server, --ca and --trust if they are or were given, and with
its password, so that other commands do not ask for it: in the file accounts.json
of the configuration directory, which only you can read. dtcp logout forgets it.`,
		Example: `  dtcp login juliet@example.org
  dtcp login juliet@example.org --server 127.0.0.1:5222 --ca server.pem`,
		Args: t.positional(1, "JID"),
	}
	c.RunE = func(c *cobra.Command, args []string) error {
		who, err := parseAccount(args[0])
		if err != nil {
			return &usageError{err}
		}
		if !t.account.IsZero() && t.account.Bare() != who.Bare() {
			return &usageError{fmt.Errorf("--account %v: the account to log in to is %v", t.account, who)}
		}
		return t.login(c.Context(), who.Bare())
	}
	return c
}

func (t *tool) login(ctx context.Context, who jid.JID) error {
	dir, err := t.profile()
	if err != nil {
		return err
	}
	a, err := dir.Account(who) // how to reach its server is known, and need not be told again
	switch {
	case errors.Is(err, profile.ErrNoAccount):
		a = profile.Account{JID: who}
	case err != nil:
		return err
	}
	t.adjust(&a)
	if a.Password, err = t.givenPassword(); err != nil {
		return &loginError{err}
	}
	if a.Password == "" {
		if a.Password, err = askPassword(ctx, who); err != nil {
			return &loginError{err}
		}
	}
	config, err := t.loginConfig(a, randomResource())
	if err != nil {
		return err
	}
	config.NoPresence, config.NoReconnect = true, true // nobody needs to know
	bounded, cancel := t.setUp(ctx)
	defer cancel()
	session, err := connect(bounded, config)
	if err != nil {
		return err
	}
	session.Close()
	if err := dir.Remember(a); err != nil {
		return err
	}
	t.out.say("logged in as %v; the account is remembered, with its password, in %s, where only you can read it; dtcp logout forgets it", who, dir.Path())
	t.out.event(accountEvent{Event: "account", JID: a.JID, Server: a.Server, Default: true})
	return nil
}

func (t *tool) logoutCommand() *cobra.Command {
	c := &cobra.Command{
		Use:   "logout [JID]",
		Short: "Forget an account and its password",
		Long: `logout forgets the account, by default that of the last login, and its password.
The certificate of this installation and the known peers stay.`,
		Args: t.positional(0, "JID"),
	}
	c.RunE = func(_ *cobra.Command, args []string) error {
		who := t.account
		if len(args) > 0 {
			var err error
			if who, err = parseAccount(args[0]); err != nil {
				return &usageError{err}
			}
		}
		dir, err := t.remembered()
		if err != nil {
			return err
		}
		a, err := dir.Account(who)
		if err != nil {
			return err
		}
		if err := dir.Forget(a.JID); err != nil {
			return err
		}
		t.out.say("forgot %v and its password", a.JID)
		switch next, err := dir.Account(jid.JID{}); {
		case err == nil:
			t.out.say("the default is now %v", next.JID)
		case !errors.Is(err, profile.ErrNoAccount):
			return err
		}
		return nil
	}
	return c
}

func (t *tool) accountsCommand() *cobra.Command {
	c := &cobra.Command{
		Use:   "accounts",
		Short: "List the accounts that are remembered, the default first",
		Args:  t.positional(0),
	}
	c.RunE = func(*cobra.Command, []string) error {
		dir, err := t.remembered()
		if err != nil {
			return err
		}
		accounts, err := dir.Accounts()
		if err != nil {
			return err
		}
		for i, a := range accounts {
			fields := []string{a.JID.String()}
			if i == 0 {
				fields = append(fields, "default")
			}
			t.out.print(accountEvent{Event: "account", JID: a.JID, Server: a.Server, Default: i == 0}, fields...)
		}
		if len(accounts) == 0 {
			t.out.say("no account is remembered: dtcp login JID")
		}
		return nil
	}
	return c
}
