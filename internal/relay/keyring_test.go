package relay

import (
	"bytes"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"

	"github.com/dtcp-relay/dtcp/internal/wire"
)

const (
	keyA = "AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA"
	keyB = "AQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQE"
)

// sealedBy returns the id of a lease that k makes.
func sealedBy(t *testing.T, k *Keyring) string {
	t.Helper()
	id, _, err := k.seal(testLease("juliet@example.org"), testNonce)
	if err != nil {
		t.Fatal(err)
	}
	return id
}

func load(t *testing.T, path string) *Keyring {
	t.Helper()
	k, err := LoadKeyring(path)
	if err != nil {
		t.Fatal(err)
	}
	return k
}

func TestKeyringOutlivesRelay(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "keys")
	id := sealedBy(t, load(t, path))
	if _, _, ok := load(t, path).open(id); !ok {
		t.Error("the lease is not honoured after a restart")
	}
	info, err := os.Stat(path)
	if err != nil {
		t.Fatal(err)
	}
	if runtime.GOOS != "windows" && info.Mode().Perm() != 0o600 {
		t.Errorf("made with mode %v, want 0600", info.Mode().Perm())
	}
	left, err := os.ReadDir(dir)
	if err != nil || len(left) != 1 {
		t.Errorf("beside the file: %v, %v", left, err)
	}
	if _, _, ok := load(t, filepath.Join(dir, "others")).open(id); ok {
		t.Error("another relay honours the lease")
	}
}

func TestKeyringRotates(t *testing.T) {
	path := filepath.Join(t.TempDir(), "keys")
	ids := []string{sealedBy(t, load(t, path))}
	numbers := map[byte]bool{}
	for range maxKeys {
		if err := RotateKeyring(path); err != nil {
			t.Fatal(err)
		}
		k := load(t, path)
		numbers[k.keys[0].number] = true
		ids = append(ids, sealedBy(t, k))
	}
	k := load(t, path)
	for i, id := range ids {
		_, _, ok := k.open(id)
		if want := i > 0; ok != want {
			t.Errorf("lease %d of %d honoured: %v, want %v", i, len(ids), ok, want)
		}
	}
	if len(numbers) != maxKeys {
		t.Errorf("%d keys had %d numbers", maxKeys, len(numbers))
	}
	// Numbers come round.
	for range 600 {
		k = k.rotated()
	}
	if len(k.keys) != maxKeys {
		t.Errorf("%d keys, want %d", len(k.keys), maxKeys)
	}
}

func TestRotateNeedsAFile(t *testing.T) {
	path := filepath.Join(t.TempDir(), "keys")
	if err := RotateKeyring(path); err == nil || !strings.Contains(err.Error(), path) {
		t.Errorf("no file: %v", err)
	}
}

// TestFirstSeals: the order in the file decides, not the numbers.
func TestFirstSeals(t *testing.T) {
	k, err := parseKeyring([]byte("7 " + keyA + "\n3 " + keyB + "\n"))
	if err != nil {
		t.Fatal(err)
	}
	if k.keys[0].number != 7 || k.keys[1].number != 3 {
		t.Errorf("keys %d and %d, want 7 and 3", k.keys[0].number, k.keys[1].number)
	}
	if first := sealedBy(t, k)[:2]; first != "Bw" { // 7 is the first byte
		t.Errorf("sealed under %q", first)
	}
	second := &Keyring{k.keys[1:]}
	if _, _, ok := k.open(sealedBy(t, second)); !ok {
		t.Error("what the second sealed is not opened")
	}
}

func TestKeyringRefused(t *testing.T) {
	for _, c := range []struct{ what, text, err string }{
		{"empty", "", "no key"},
		{"only a comment", "# 1 " + keyA, "no key"},
		{"no number", keyA, "line 1 is not"},
		{"three words", "1 " + keyA + " x", "line 1 is not"},
		{"a number too great", "\n256 " + keyA, "line 2: the number"},
		{"a number twice", "1 " + keyA + "\n1 " + keyB, "line 2: the number"},
		{"a short key", "1 " + keyA[1:], "line 1: a key is"},
		{"a long key", "1 " + keyA + "AAAA", "line 1: a key is"},
		{"padding", "1 " + keyA + "=", "line 1: a key is"},
		{"spare bits", "1 " + keyA[1:] + "B", "line 1: a key is"},
		{"five keys", "1 " + keyA + "\n2 " + keyA + "\n3 " + keyA + "\n4 " + keyA + "\n5 " + keyA, "more than 4 keys"},
		{"a great file", strings.Repeat("#\n", maxKeyFile), "more than 4096 bytes"},
	} {
		path := filepath.Join(t.TempDir(), "keys")
		if err := os.WriteFile(path, []byte(c.text), 0o600); err != nil {
			t.Fatal(err)
		}
		_, err := LoadKeyring(path)
		if err == nil || !strings.Contains(err.Error(), c.err) || !strings.Contains(err.Error(), path) {
			t.Errorf("%s: %v, want %q and the path", c.what, err, c.err)
		} else if strings.Contains(err.Error(), keyA[1:]) {
			t.Errorf("%s: the error shows a key: %v", c.what, err)
		}
		if left, err := os.ReadFile(path); err != nil || !bytes.Equal(left, []byte(c.text)) {
			t.Errorf("%s: the file was changed, %v", c.what, err)
		}
	}
}

func TestKeyringForAllToRead(t *testing.T) {
	if runtime.GOOS == "windows" {
		return // has no such bits
	}
	path := filepath.Join(t.TempDir(), "keys")
	load(t, path)
	for mode, want := range map[os.FileMode]bool{0o400: true, 0o440: true, 0o604: false, 0o602: false} {
		if err := os.Chmod(path, mode); err != nil {
			t.Fatal(err)
		}
		if _, err := LoadKeyring(path); (err == nil) != want {
			t.Errorf("mode %v: %v, want accepted: %v", mode, err, want)
		}
	}
	if _, err := LoadKeyring(filepath.Join(path, "x")); err == nil {
		t.Error("a folder that is none: no error")
	}
}

func TestNewKeyring(t *testing.T) {
	a, b := NewKeyring(), NewKeyring()
	if _, _, ok := a.open(sealedBy(t, b)); ok {
		t.Error("two new keyrings are the same")
	}
	if _, reason := a.verify(wire.NewClaim(wire.Serve, "key", sealedBy(t, b), nil, leaseTime), "a", Access{}.admission(), leaseTime); reason != wire.BadLease {
		t.Errorf("refused as %q, want %q", reason, wire.BadLease)
	}
}
