package main

import (
	"context"
	"encoding/xml"
	"errors"
	"regexp"
	"sync"
	"time"

	"github.com/dtcp-relay/dtcp/xmpp"
	"github.com/dtcp-relay/dtcp/xmpp/jid"
	"github.com/dtcp-relay/dtcp/xmpp/stanza"
)

// maxAnswers is how many answers wait to be sent; a question beyond gets none,
// and is asked again.
const maxAnswers = 1024

// answerTimeout is how long an answer waits for a login: who asked waits no
// longer.
const answerTimeout = 10 * time.Second

// component is the relay as a component of an XMPP server (XEP-0114).
type component struct {
	session *xmpp.Session
	answers chan stanza.IQ
	ended   chan struct{}
	metrics *metrics

	mu      sync.Mutex // held for moments
	absence string     // why there is no login, "" if there is one
}

func (c *component) start(d *daemon) (err error) {
	config := d.config.Load()
	c.answers, c.ended, c.metrics = make(chan stanza.IQ, maxAnswers), make(chan struct{}), d.metrics
	c.absence = "not logged in at " + config.Component.Server + " yet"
	c.session, err = xmpp.NewComponent(&xmpp.ComponentConfig{
		Domain: config.domain, Secret: config.secret, Server: config.Component.Server,
		Trace: c.trace(d.log, config.Component.Server),
	})
	if err != nil {
		return err
	}
	// Everything that is asked is for the relay, which says what it knows of.
	c.session.HandleIQ(xml.Name{}, func(q stanza.IQ) {
		if q.Type != stanza.Get && q.Type != stanza.Set {
			return
		}
		c.metrics.asked(q)
		select {
		case c.answers <- d.relay.Answer(q):
		default:
			c.metrics.unanswered.Inc()
		}
	})
	// Owned by the component: close closes answers, which ends it, and waits.
	go c.send()
	return nil
}

// send sends what the read loop, which must not wait, has answered.
func (c *component) send() {
	defer close(c.ended)
	for a := range c.answers {
		ctx, cancel := context.WithTimeout(context.Background(), answerTimeout)
		if err := c.session.Send(ctx, a); err != nil {
			c.metrics.unanswered.Inc()
		}
		cancel()
	}
}

func (c *component) trace(log *logger, server string) *xmpp.Trace {
	t := &xmpp.Trace{
		Connected: func(addr jid.JID) {
			c.set("")
			c.metrics.logins.Inc()
			log.say("logged in as component %v at %s", addr, server)
			notify("STATUS=serving")
		},
		Disconnected: func(err error) {
			if errors.Is(err, xmpp.ErrClosed) {
				return
			}
			c.set("the component's login is lost: " + err.Error())
			log.say("the component's login is lost: %v", err)
		},
		Retrying: func(err error, in time.Duration) {
			c.set("the component is not logged in: " + err.Error())
			log.say("not logged in: %v; next attempt in %v", err, in.Round(time.Second))
			notify("STATUS=not logged in: " + clean(err.Error()))
		},
	}
	if log.verbose {
		t.Element = func(sent bool, xml string) {
			if sent {
				log.say("to the server: %s", withoutSecrets(xml))
			} else {
				log.say("from the server: %s", withoutSecrets(xml))
			}
		}
	}
	return t
}

var secretAttribute = regexp.MustCompile(`( secret=)('[^']*'|"[^"]*")`)

// withoutSecrets blanks the secrets of leases: who reads the log must not be able
// to use them.
func withoutSecrets(xml string) string { return secretAttribute.ReplaceAllString(xml, "$1'…'") }

func (c *component) set(absence string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.absence = absence
}

func (c *component) trouble() string {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.absence
}

func (c *component) reload() error { return nil }

func (c *component) close() {
	if c.session == nil {
		return
	}
	_ = c.session.Close() // is always nil; no handler runs after it
	close(c.answers)
	<-c.ended
}
