package main

import (
	"bufio"
	"bytes"
	"fmt"
	"io"
	"os"
	"runtime"
)

// maxSecret bounds, in bytes, the first line of a file with a secret.
const maxSecret = 4096

// readSecret returns the first line of a file, without its end.
func readSecret(path string) (string, error) {
	f, err := os.Open(path)
	if err != nil {
		return "", err
	}
	defer f.Close()
	line, err := bufio.NewReaderSize(io.LimitReader(f, maxSecret+2), maxSecret+2).ReadSlice('\n')
	if err != nil && err != io.EOF && err != bufio.ErrBufferFull {
		return "", err
	}
	line = bytes.TrimSuffix(bytes.TrimSuffix(line, []byte("\n")), []byte("\r"))
	switch {
	case len(line) == 0:
		return "", fmt.Errorf("the first line of %s is empty", path)
	case len(line) > maxSecret:
		return "", fmt.Errorf("the first line of %s is longer than %d bytes", path, maxSecret)
	}
	return string(line), nil
}

// exposed reports whether all users can read a file. The file's group may: that
// is how a service gets it.
func exposed(path string) bool {
	info, err := os.Stat(path)
	return err == nil && runtime.GOOS != "windows" && info.Mode().IsRegular() && info.Mode().Perm()&0o007 != 0
}
