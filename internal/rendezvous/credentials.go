package rendezvous

import (
	"encoding/base64"
	"errors"
	"fmt"
	"strconv"
	"strings"

	"github.com/xdg-go/scram"
)

// Credentials is what a server keeps of a password: what checks it (RFC 5802,
// 3), and from which it can only be guessed. It is a value; the zero value is no
// credentials. Its text is that of RFC 5803, 2, for both hashes, with a space
// between them.
type Credentials struct{ keys keys }

// NewCredentials derives the credentials of a password, each time others.
// iterations is as in [Config].
func NewCredentials(password string, iterations int) (Credentials, error) {
	switch {
	case iterations == 0:
		iterations = defaultIterations
	case iterations < minIterations:
		return Credentials{}, fmt.Errorf("rendezvous: %d iterations are too few", iterations)
	}
	if password == "" {
		return Credentials{}, errors.New("rendezvous: the password is empty")
	}
	k, err := newKeys(password, iterations)
	if err != nil {
		return Credentials{}, fmt.Errorf("rendezvous: %w", err)
	}
	return Credentials{k}, nil
}

// MarshalText is the text to keep. It fails for the zero value.
func (c Credentials) MarshalText() ([]byte, error) {
	if c.keys.sha1.Iters == 0 {
		return nil, errors.New("rendezvous: no credentials")
	}
	encode := base64.StdEncoding.EncodeToString
	text := func(name string, k scram.StoredCredentials) string {
		return fmt.Sprintf("%s$%d:%s$%s:%s", name, k.Iters, encode([]byte(k.Salt)), encode(k.StoredKey), encode(k.ServerKey))
	}
	return []byte(text("SCRAM-SHA-1", c.keys.sha1) + " " + text("SCRAM-SHA-256", c.keys.sha256)), nil
}

// UnmarshalText reads what MarshalText wrote. Errors do not repeat it.
func (c *Credentials) UnmarshalText(text []byte) error {
	first, second, _ := strings.Cut(string(text), " ")
	var k keys
	var err error
	if k.sha1, err = parseKeys("SCRAM-SHA-1", 20, first); err == nil {
		k.sha256, err = parseKeys("SCRAM-SHA-256", 32, second)
	}
	if err != nil {
		return fmt.Errorf("rendezvous: credentials: %w", err)
	}
	*c = Credentials{k}
	return nil
}

// parseKeys reads "NAME$iterations:salt$stored key:server key", where keys
// have size bytes.
func parseKeys(name string, size int, text string) (k scram.StoredCredentials, err error) {
	parts := strings.FieldsFunc(text, func(r rune) bool { return r == '$' || r == ':' })
	if len(parts) != 5 || parts[0] != name {
		return k, fmt.Errorf("not those of %s", name)
	}
	if k.Iters, err = strconv.Atoi(parts[1]); err != nil || k.Iters < minIterations || k.Iters > maxIterations {
		return k, fmt.Errorf("%s: not %d to %d iterations", name, minIterations, maxIterations)
	}
	var raw [3][]byte
	for i, p := range parts[2:] {
		if raw[i], err = base64.StdEncoding.DecodeString(p); err != nil {
			return k, fmt.Errorf("%s: not base64", name)
		}
	}
	k.Salt, k.StoredKey, k.ServerKey = string(raw[0]), raw[1], raw[2]
	if len(k.Salt) < 8 || len(k.Salt) > 64 || len(k.StoredKey) != size || len(k.ServerKey) != size {
		return k, fmt.Errorf("%s: a part has the wrong length", name)
	}
	return k, nil
}
