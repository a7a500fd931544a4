// Dtcp reaches a machine by its XMPP address: it gives two XMPP addresses a
// reliable, encrypted byte stream. See "dtcp help".
//
// This package is thin: flags, configuration, output, and the copying between a
// stream and what it serves. The streams are package dtcp, the login is package
// xmpp, files are internal/transfer, and what is remembered is internal/profile.
package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"runtime"
	"runtime/debug"
	"strings"

	"github.com/spf13/cobra"

	"github.com/dtcp-relay/dtcp/internal/egress"
)

func main() { os.Exit(run(os.Args[1:])) }

// run does what args say and returns the exit status.
func run(args []string) int {
	t := &tool{out: newOutput(os.Stdout, os.Stderr), egress: egress.FromEnvironment()}
	ctx, stop := interruptible(context.Background(), t.commands.kill)
	defer stop()
	root := t.root()
	root.SetArgs(args)
	c, err := root.ExecuteContextC(ctx)
	if err != nil && !t.began && wantsJSON(args) {
		t.out.eventsOn(dataCommand(c))
	}
	switch {
	case err == nil:
		err = t.out.failure()
	case ctx.Err() != nil:
		err = context.Cause(ctx) // whatever failed, this is why
	case !t.began && status(err) != exitUsage:
		err = &usageError{err} // of cobra, which has no type for it
	}
	t.out.fail(err)
	return status(err)
}

// tool is one run of the program.
type tool struct {
	options
	out      *output
	egress   *egress.Dialer // how connections to servers and relays leave the network
	commands commands       // that listen runs
	began    bool           // the command line was understood
}

func (t *tool) root() *cobra.Command {
	root := &cobra.Command{
		Use:   "dtcp",
		Short: "Reach a machine by its XMPP address",
		Long: `dtcp gives two XMPP addresses a reliable, encrypted byte stream, and sends files
over it: direct whenever either side can be reached, through a relay otherwise.
Messages go to stderr, stdout is data only.

Exit status: 0 ok, 1 failed or cut, 2 usage, 3 refused by the peer, 4 nobody
there or no path, 5 login failed or account in conflict, 130 interrupted.`,
		Example: `  dtcp demo
  dtcp login juliet@example.org
  dtcp receive --dir Downloads
  dtcp send photo.jpg juliet@example.org
  dtcp listen --to 127.0.0.1:22 --service ssh
  ssh -o ProxyCommand='dtcp dial juliet@example.org --service ssh' juliet@balcony`,
		SilenceErrors: true,
		SilenceUsage:  true,
		// Set for all: a command's own hook would replace it.
		PersistentPreRunE: func(c *cobra.Command, _ []string) error { return t.begin(c) },
		RunE: func(c *cobra.Command, args []string) error {
			if t.showVersion {
				return nil
			}
			c.SetOut(os.Stderr)
			if err := c.Usage(); err != nil {
				return err
			}
			return &usageError{errors.New("a command is missing")}
		},
	}
	root.CompletionOptions.HiddenDefaultCmd = true
	root.SetOut(results{t.out})
	root.SetHelpCommand(helpCommand(root))
	root.SetFlagErrorFunc(func(c *cobra.Command, err error) error {
		return &usageError{fmt.Errorf("%w: see '%s --help'", err, c.CommandPath())}
	})
	t.options.register(root.PersistentFlags())
	root.Flags().SortFlags = false
	root.AddCommand(
		t.demoCommand(), t.loginCommand(), t.logoutCommand(), t.accountsCommand(),
		t.sendCommand(), t.receiveCommand(),
		t.listenCommand(), t.dialCommand(), t.forwardCommand(), t.checkCommand(), t.peersCommand(),
	)
	return root
}

// helpCommand is that of cobra, but fails when there is no such command.
func helpCommand(root *cobra.Command) *cobra.Command {
	return &cobra.Command{
		Use:              "help [COMMAND]",
		Short:            "Help about any command",
		PersistentPreRun: func(*cobra.Command, []string) {}, // no other flag means anything
		RunE: func(_ *cobra.Command, args []string) error {
			c, rest, err := root.Find(args)
			if err == nil && len(rest) == 0 {
				return c.Help()
			}
			return &usageError{fmt.Errorf("%q is no command: see 'dtcp --help'", strings.Join(args, " "))}
		},
	}
}

// begin runs between the reading of the command line and the command.
func (t *tool) begin(c *cobra.Command) error {
	if t.showVersion {
		fmt.Fprintln(results{t.out}, version())
		c.RunE = func(*cobra.Command, []string) error { return nil }
		return nil
	}
	if err := t.options.check(); err != nil {
		return &usageError{err}
	}
	if t.retry > 0 && c.Annotations[retries] == "" {
		return &usageError{fmt.Errorf("--retry: %s makes one attempt", c.CommandPath())}
	}
	t.began = true
	return t.out.configure(&t.options, dataCommand(c))
}

// dataCommand reports whether stdout is a stream's.
func dataCommand(c *cobra.Command) bool {
	dir := c.Flags().Lookup("dir")
	return c.Annotations[dataOnStdout] != "" || dir != nil && dir.Value.String() == toStdout
}

// wantsJSON reports whether --json is given on a command line that could not be
// understood.
func wantsJSON(args []string) bool {
	for _, a := range args {
		switch a {
		case "--json", "--json=true":
			return true
		case "--":
			return false
		}
	}
	return false
}

// What commands are marked with.
const (
	dataOnStdout = "data on stdout" // it belongs to the stream, so that --json goes to stderr
	retries      = "retries"        // --retry means something
)

// version says what this binary was built from.
func version() string {
	number := "(unknown version)"
	if info, ok := debug.ReadBuildInfo(); ok && info.Main.Version != "" {
		number = info.Main.Version
	}
	return fmt.Sprintf("dtcp %s %s %s/%s", number, runtime.Version(), runtime.GOOS, runtime.GOARCH)
}

// positional checks the number of arguments; names are those of the usage line.
func (t *tool) positional(min int, names ...string) cobra.PositionalArgs {
	return func(c *cobra.Command, args []string) error {
		switch {
		case t.showVersion:
			return nil
		case len(args) < min:
			return fmt.Errorf("%s is missing: see '%s --help'", names[len(args)], c.CommandPath())
		case len(args) > len(names):
			return fmt.Errorf("%q is one argument too many: see '%s --help'", args[len(names)], c.CommandPath())
		}
		return nil
	}
}
