// Dtcpd is the DTCP relay and XEP-0065 proxy of an XMPP domain: a component
// (XEP-0114) of its server, or, with --standalone, also the small XMPP server by
// which its users find each other. doc/operating.md says how it is set up.
//
// This package is thin: configuration, signals, logs, metrics. The relay is
// internal/relay, the component's login is package xmpp, and the small server is
// internal/rendezvous.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"runtime"
	"runtime/debug"
	"strings"

	"github.com/spf13/cobra"

	"github.com/dtcp-relay/dtcp/internal/epoll"
)

// Exit statuses.
const (
	exitOK     = 0
	exitFailed = 1
	exitUsage  = 2 // or a configuration that makes no sense
)

func main() {
	if runtime.GOMAXPROCS(0) < epoll.Spare {
		runtime.GOMAXPROCS(epoll.Spare) // for the loops of the relay
	}
	os.Exit(run(os.Args[1:]))
}

// run does what args say and returns the exit status.
func run(args []string) int {
	f := &flags{log: newLog(os.Stderr)}
	root := f.root()
	root.SetArgs(args)
	err := root.Execute()
	var wrong *configError
	switch {
	case err == nil:
		return exitOK
	case errors.Is(err, errTold):
		return exitFailed
	}
	f.log.say("%v", err)
	if !f.began || errors.As(err, &wrong) {
		return exitUsage
	}
	return exitFailed
}

// errTold is a failure that the user has been told of.
var errTold = errors.New("told")

// flags is the command line.
type flags struct {
	config     string
	standalone bool
	domain     string
	data       string
	verbose    bool

	log   *logger
	began bool // the command line was understood
}

func (f *flags) root() *cobra.Command {
	var showVersion, showExample bool
	root := &cobra.Command{
		Use:   "dtcpd",
		Short: "The DTCP relay and XEP-0065 proxy of an XMPP domain",
		Long: `dtcpd is the DTCP relay and XEP-0065 proxy of an XMPP domain, as a component of its
server. With --standalone it is also a small XMPP server, and needs no other.

SIGHUP reloads limits, access rules, addresses, certificates and master keys, and
reopens the usage log. SIGTERM lets streams end for a while; the second one does
not.

Exit status: 0 ok, 1 failed, 2 usage or configuration.`,
		Example: `  dtcpd --example-config > /etc/dtcp/dtcpd.toml
  dtcpd
  dtcpd check
  dtcpd --standalone --domain example.org --data /var/lib/dtcpd
  dtcpd account add juliet --data /var/lib/dtcpd`,
		Args:          noArguments,
		SilenceErrors: true,
		SilenceUsage:  true,
		PersistentPreRun: func(*cobra.Command, []string) {
			f.began = true
			f.log.verbose = f.verbose
		},
		RunE: func(*cobra.Command, []string) error {
			switch {
			case showVersion:
				return printed(fmt.Println(version()))
			case showExample:
				return printed(io.WriteString(os.Stdout, example))
			}
			return f.daemon()
		},
	}
	root.CompletionOptions.HiddenDefaultCmd = true
	root.SetFlagErrorFunc(func(c *cobra.Command, err error) error {
		return fmt.Errorf("%w: see '%s --help'", err, c.CommandPath())
	})
	all := root.PersistentFlags()
	all.StringVar(&f.config, "config", "", "configuration `file` (default: "+defaultFile+")")
	all.BoolVar(&f.standalone, "standalone", false, "be the XMPP server, too")
	all.StringVar(&f.domain, "domain", "", "`domain` of the accounts, with --standalone")
	all.StringVar(&f.data, "data", "", "`directory` of master keys, accounts and certificates")
	all.BoolVarP(&f.verbose, "verbose", "v", false, "also say who is refused, who logs in, and what the XMPP server says")
	root.Flags().BoolVar(&showVersion, "version", false, "print the version and exit")
	root.Flags().BoolVar(&showExample, "example-config", false, "print a configuration file with every key and exit")
	root.Flags().SortFlags, all.SortFlags = false, false
	root.AddCommand(f.accountCommand(), f.checkCommand(), f.rotateCommand())
	return root
}

func noArguments(c *cobra.Command, args []string) error {
	if len(args) == 0 {
		return nil
	}
	what := "is one argument too many"
	if c.HasSubCommands() {
		what = "is no command"
	}
	return fmt.Errorf("%q %s: see '%s --help'", args[0], what, c.CommandPath())
}

func printed(_ int, err error) error { return err }

// daemon runs until a signal ends it.
func (f *flags) daemon() error {
	c, err := f.load()
	if err != nil {
		return err
	}
	signals := newSignals()
	defer signals.stop()
	d, err := newDaemon(c, f.log)
	if err != nil {
		return err
	}
	return d.run(context.Background(), signals, f.load)
}

// version says what this binary was built from.
func version() string {
	return fmt.Sprintf("dtcpd %s %s %s/%s", buildVersion(), runtime.Version(), runtime.GOOS, runtime.GOARCH)
}

func buildVersion() string {
	if info, ok := debug.ReadBuildInfo(); ok && info.Main.Version != "" {
		return strings.Trim(info.Main.Version, "()")
	}
	return "unknown"
}
