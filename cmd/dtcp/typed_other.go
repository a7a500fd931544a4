//go:build !linux

package main

import "os"

// dropTyped does nothing: what was typed before a question was shown stands
// there to be seen, and can be taken back until the line ends.
func dropTyped(*os.File) {}
