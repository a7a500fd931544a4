//go:build linux

package lab_test

import (
	"testing"

	"github.com/dtcp-relay/dtcp/lab"
)

// A story is told once through every server, with accounts of its own.
type story struct {
	name string
	tell func(*testing.T, *stage)
}

// stories are the promises of the command line contract, each through a real
// XMPP server. They are in the files named for what they are about.
var stories = []story{
	{"login", tellLogin},
	{"accounts", tellAccounts},
	{"direct TLS", tellDirectTLS},
	{"server's certificate", tellServerCertificate},
	{"bare address", tellBareAddress},
	{"own account", tellOwnAccount},
	{"one round trip", tellOneRoundTrip},
	{"sha256sum", tellDigest},
	{"dialer ends first", tellDialerEndsFirst},
	{"listener ends first", tellListenerEndsFirst},
	{"tar there", tellTarThere},
	{"tar back", tellTarBack},
	{"failing command", tellFailingCommand},
	{"cut", tellCut},
	{"IPv6", tellIPv6},
	{"ssh", tellSSH},
	{"forward", tellForward},
	{"git clone", tellGitClone},
	{"refusal", tellRefusal},
	{"absence", tellAbsence},
	{"wrong password", tellWrongPassword},
	{"conflict", tellConflict},
	{"interrupt", tellInterrupt},
	{"large file", tellLargeFile},
	{"many files", tellManyFiles},
	{"names in ten scripts", tellScripts},
	{"empty file", tellEmptyFile},
	{"standard streams", tellStandardStreams},
	{"failing sources", tellFailingSources},
	{"no terminal", tellNoTerminal},
	{"who may send", tellWhoMaySend},
	{"stock asks", tellStockAsks},
	{"stock asked", tellStockAsked},
	{"stock refused", tellStockRefused},
	{"old stock", tellOldStock},
}

// TestLab tells every story through every server.
func TestLab(t *testing.T) {
	for _, kind := range lab.Kinds {
		t.Run(kind.Name, func(t *testing.T) {
			server := kind.Start(t)
			for _, s := range stories {
				t.Run(s.name, func(t *testing.T) {
					s.tell(t, &stage{server: server})
				})
			}
		})
	}
}

// A stage is where one story plays.
type stage struct {
	server *lab.Server
}

// user makes a user with a new account.
func (s *stage) user(t *testing.T, name string) *lab.User {
	t.Helper()
	return lab.NewUser(t, s.server, dtcpBinary, name)
}

// wantStatus fails the test when a command ended otherwise than the contract says.
func wantStatus(t *testing.T, what string, got lab.Result, want int) {
	t.Helper()
	if got.Status != want {
		t.Errorf("%s: exit status %d, want %d; it said:\n%s", what, got.Status, want, got.Messages)
	}
}
