package relay

import (
	"bytes"
	"crypto/aes"
	"crypto/cipher"
	"crypto/hkdf"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
)

const (
	masterSize = 32      // bytes of a master key
	maxKeys    = 4       // keys of a keyring: a lease lasts an hour, and nobody changes keys more often
	maxKeyFile = 4 << 10 // bytes of a keyring's file
)

// Keyring holds the master keys under which leases are sealed (Section 3 of
// protocol.md). The first seals; leases sealed by any of them are honoured. Who
// has a master key can make leases for anybody. A Keyring is made by [NewKeyring]
// or [LoadKeyring], and does not change.
type Keyring struct{ keys []masterKey }

// masterKey is one key, with what is derived from it.
type masterKey struct {
	number byte // stands in every lease that is sealed by it
	master [masterSize]byte
	lease  cipher.AEAD // seals ids
	secret []byte      // makes the secrets of ids
}

// NewKeyring makes a keyring of one new key, whose leases end with the process.
func NewKeyring() *Keyring { return (&Keyring{}).rotated() }

// LoadKeyring reads a keyring from a file, or makes it and the file if there is
// none, readable by its owner alone. Every line of the file is the number of a
// key, 0 to 255, and the key itself, 32 bytes in base64url; lines with # are
// comments. The error names the file; a file that all users can read is refused.
func LoadKeyring(path string) (*Keyring, error) {
	k, err := readKeyring(path)
	if errors.Is(err, fs.ErrNotExist) {
		k = NewKeyring()
		err = k.write(path)
	}
	if err != nil {
		return nil, fmt.Errorf("relay: master keys: %w", err)
	}
	return k, nil
}

// RotateKeyring puts a new key in front of those in a file, as [LoadKeyring]
// understands it, and lets go of the fourth. A relay seals with the new key when
// it has loaded the file again; leases that are out stay good.
func RotateKeyring(path string) error {
	k, err := readKeyring(path)
	if err == nil {
		err = k.rotated().write(path)
	}
	if err != nil {
		return fmt.Errorf("relay: master keys: %w", err)
	}
	return nil
}

// rotated returns k with a new key in front, which has a number of its own.
func (k *Keyring) rotated() *Keyring {
	var next byte
	if len(k.keys) > 0 {
		next = k.keys[0].number + 1 // not that of a key let go of lately
	}
	for ; k.find(next) != nil; next++ {
	}
	var master [masterSize]byte
	_, _ = rand.Read(master[:]) // never fails (crypto/rand)
	keys := append([]masterKey{newMasterKey(next, master)}, k.keys...)
	return &Keyring{keys[:min(len(keys), maxKeys)]}
}

func newMasterKey(number byte, master [masterSize]byte) masterKey {
	derive := func(what string) []byte {
		b, err := hkdf.Key(sha256.New, master[:], nil, "dtcp relay "+what, sha256.Size)
		if err != nil {
			panic(err) // only a length that is too great
		}
		return b
	}
	block, err := aes.NewCipher(derive("lease"))
	if err != nil {
		panic(err) // only a length that is none of AES
	}
	aead, err := cipher.NewGCM(block)
	if err != nil {
		panic(err) // only another size of block
	}
	return masterKey{number: number, master: master, lease: aead, secret: derive("secret")}
}

// find returns the key of a number, or nil.
func (k *Keyring) find(number byte) *masterKey {
	i := slices.IndexFunc(k.keys, func(m masterKey) bool { return m.number == number })
	if i < 0 {
		return nil
	}
	return &k.keys[i]
}

func readKeyring(path string) (*Keyring, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return nil, err
	}
	// A service manager may hand the file to a group that is the service's own.
	if runtime.GOOS != "windows" && info.Mode().Perm()&0o007 != 0 {
		return nil, fmt.Errorf("all users can read or write %s: chmod o= it, and make new keys if they could for long", path)
	}
	text, err := io.ReadAll(io.LimitReader(f, maxKeyFile+1))
	if err != nil {
		return nil, err
	}
	k, err := parseKeyring(text)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	return k, nil
}

func parseKeyring(text []byte) (*Keyring, error) {
	if len(text) > maxKeyFile {
		return nil, fmt.Errorf("more than %d bytes", maxKeyFile)
	}
	k := &Keyring{}
	for i, line := range strings.Split(string(text), "\n") {
		fields := strings.Fields(line)
		if len(fields) == 0 || strings.HasPrefix(fields[0], "#") {
			continue
		}
		// What is wrong with a key is said without the key.
		if len(fields) != 2 {
			return nil, fmt.Errorf("line %d is not a number and a key", i+1)
		}
		number, err := strconv.ParseUint(fields[0], 10, 8)
		if err != nil || k.find(byte(number)) != nil {
			return nil, fmt.Errorf("line %d: the number of a key is 0 to 255, and its own", i+1)
		}
		b, err := base64.RawURLEncoding.Strict().DecodeString(fields[1])
		if err != nil || len(b) != masterSize {
			return nil, fmt.Errorf("line %d: a key is %d bytes in base64url", i+1, masterSize)
		}
		if len(k.keys) == maxKeys {
			return nil, fmt.Errorf("more than %d keys", maxKeys)
		}
		k.keys = append(k.keys, newMasterKey(byte(number), [masterSize]byte(b)))
	}
	if len(k.keys) == 0 {
		return nil, errors.New("no key in it")
	}
	return k, nil
}

// write replaces the file, so that it is always whole.
func (k *Keyring) write(path string) error {
	var text bytes.Buffer
	text.WriteString("# Master keys of a relay's leases. Keep them secret. The first seals, all open.\n")
	for _, m := range k.keys {
		fmt.Fprintf(&text, "%d %s\n", m.number, base64.RawURLEncoding.EncodeToString(m.master[:]))
	}
	f, err := os.CreateTemp(filepath.Dir(path), filepath.Base(path)+".*") // mode 0600
	if err != nil {
		return err
	}
	_, err = f.Write(text.Bytes())
	if err == nil {
		err = f.Sync()
	}
	if err2 := f.Close(); err == nil {
		err = err2
	}
	if err == nil {
		err = os.Rename(f.Name(), path)
	}
	if err != nil {
		_ = os.Remove(f.Name()) // err says more
	}
	return err
}
