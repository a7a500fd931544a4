package main

import (
	"os"
	"path/filepath"

	"github.com/spf13/cobra"

	"github.com/dtcp-relay/dtcp/internal/relay"
)

func (f *flags) rotateCommand() *cobra.Command {
	return &cobra.Command{
		Use: "rotate", Short: "Put a new master key in front of the old ones, for the next reload", Args: noArguments,
		RunE: func(*cobra.Command, []string) error {
			c, err := f.load()
			if err != nil {
				return err
			}
			path := c.Relay.KeyFile
			if err := relay.RotateKeyring(path); err != nil {
				return err
			}
			// It is a new file, of root perhaps.
			key, err := os.Open(path)
			if err != nil {
				return err
			}
			defer key.Close()
			if err := adopt(key, filepath.Dir(path)); err != nil {
				return err
			}
			f.log.say("new master key in %s: reload dtcpd (SIGHUP); leases under the old keys stay good", path)
			return nil
		},
	}
}
