package main

import (
	_ "embed"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math"
	"net"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/BurntSushi/toml"

	"github.com/dtcp-relay/dtcp/internal/relay"
	"github.com/dtcp-relay/dtcp/xmpp/jid"
)

// example is a whole configuration with every key, its default and its meaning.
//
//go:embed dtcpd.toml
var example string

// defaultFile is read when no other is named, if it is there.
const defaultFile = "/etc/dtcp/dtcpd.toml"

// maxConfig bounds a configuration file, in bytes.
const maxConfig = 1 << 20

// config is the configuration file. Keys that are absent have the defaults
// that load sets; doc/operating.md and dtcpd.toml say what they mean.
type config struct {
	State      string          `toml:"state"`
	Component  componentKeys   `toml:"component"`
	Standalone *standaloneKeys `toml:"standalone"` // nil: dtcpd is a component
	Relay      relayKeys       `toml:"relay"`
	Limits     limitKeys       `toml:"limits"`
	Metrics    metricsKeys     `toml:"metrics"`
	Usage      usageKeys       `toml:"usage"`

	file   string  // where it was read, "" if nowhere
	domain jid.JID // of the relay
	secret string  // of the component
	rules  relay.Rules
}

type componentKeys struct {
	Server     string `toml:"server"`
	Domain     string `toml:"domain"`
	SecretFile string `toml:"secret_file"`
}

type standaloneKeys struct {
	Domain string   `toml:"domain"`
	Relay  string   `toml:"relay"`
	Listen []string `toml:"listen"`
	Public string   `toml:"public"`
}

type relayKeys struct {
	Listen       []string `toml:"listen"`
	Public       []string `toml:"public"`
	PublicTLS    []string `toml:"public_tls"`
	Certificate  string   `toml:"certificate"`
	Key          string   `toml:"key"`
	AllowDomains []string `toml:"allow_domains"`
	AllowJIDs    []string `toml:"allow_jids"`
	Deny         []string `toml:"deny"`
	KeyFile      string   `toml:"key_file"`
	Node         string   `toml:"node"`
	Drain        duration `toml:"drain"`
}

type limitKeys struct {
	Connections amount    `toml:"connections"`
	Address     quotaKeys `toml:"address"`
	Owner       quotaKeys `toml:"owner"`
}

type quotaKeys struct {
	HalfOpen    amount `toml:"half_open"`
	Streams     amount `toml:"streams"`
	Handshakes  amount `toml:"handshakes"`
	Rate        amount `toml:"rate"`
	BytesPerDay amount `toml:"bytes_per_day"`
}

type metricsKeys struct {
	Listen *string `toml:"listen"` // nil: the default; "": nowhere
}

type usageKeys struct {
	File string `toml:"file"`
	Blur bool   `toml:"blur"`
}

// Defaults that are no zero values.
const (
	defaultComponentServer  = "127.0.0.1:5347"
	defaultRelayListen      = ":5280"
	defaultStandaloneListen = ":5222"
	defaultMetricsListen    = "127.0.0.1:9465"
	defaultDrain            = 5 * time.Minute
)

// configError is what is wrong with the configuration.
type configError struct {
	file string
	err  error
}

func (e *configError) Error() string {
	if e.file == "" {
		return e.err.Error()
	}
	return fmt.Sprintf("%s: %v", e.file, e.err)
}

func (e *configError) Unwrap() error { return e.err }

// load reads the configuration that the flags name, and checks it.
func (f *flags) load() (*config, error) {
	c := &config{file: f.config}
	if c.file == "" && !f.standalone {
		c.file = defaultFile
	}
	if c.file != "" {
		text, err := readUpTo(c.file, maxConfig)
		switch {
		case errors.Is(err, fs.ErrNotExist) && f.config == "":
			return nil, &configError{err: errors.New("there is no " + defaultFile +
				": name a file by --config, begin with that of 'dtcpd --example-config', or run 'dtcpd --standalone --domain DOMAIN'")}
		case err != nil:
			return nil, &configError{err: err}
		}
		if err := c.parse(text); err != nil {
			return nil, &configError{c.file, err}
		}
	}
	f.override(c)
	if err := c.complete(); err != nil {
		return nil, &configError{c.file, err}
	}
	return c, nil
}

// override sets what the command line says.
func (f *flags) override(c *config) {
	if (f.standalone || f.domain != "") && c.Standalone == nil {
		c.Standalone = &standaloneKeys{}
	}
	if f.domain != "" {
		c.Standalone.Domain = f.domain
	}
	if f.data != "" {
		c.State = f.data
	}
}

// parse reads the text of a configuration.
func (c *config) parse(text []byte) error {
	meta, err := toml.Decode(string(text), c)
	var syntax toml.ParseError
	switch {
	case errors.As(err, &syntax):
		return fmt.Errorf("line %d: %s", syntax.Position.Line, syntax.Message)
	case err != nil:
		said := strings.TrimPrefix(err.Error(), "toml: ")
		if m := wrongType.FindStringSubmatch(said); m != nil {
			said = fmt.Sprintf("%s: %s is %s, and must be %s", m[1], m[2], typeName(m[3]), typeName(m[4]))
		}
		return errors.New(said)
	}
	var unknown []string
	for _, key := range meta.Undecoded() {
		said := strconv.Quote(key.String())
		if near := nearest(key.String(), knownKeys()); near != "" {
			said += fmt.Sprintf(" (is %q meant?)", near)
		}
		unknown = append(unknown, said)
	}
	if len(unknown) > 0 {
		return fmt.Errorf("unknown key %s: see 'dtcpd --example-config'", strings.Join(unknown, ", "))
	}
	return nil
}

// wrongType is what package toml says of a value that is of another type than its
// key.
var wrongType = regexp.MustCompile(`^(line \d+) \(last key "(.*)"\): incompatible types: TOML value has type (.*); destination has type (.*)$`)

// typeName is how people call a type of package toml.
func typeName(of string) string {
	switch of {
	case "slice":
		return "a list, in [ ]"
	case "boolean", "bool":
		return "true or false"
	case "string":
		return "a string"
	case "int64":
		return "a number"
	}
	return of
}

// complete sets the defaults and reads what the values stand for.
func (c *config) complete() error {
	if c.State == "" {
		c.State = stateDirectory()
	}
	if c.Metrics.Listen == nil {
		listen := defaultMetricsListen
		c.Metrics.Listen = &listen
	}
	if len(c.Relay.Listen) == 0 {
		c.Relay.Listen = []string{defaultRelayListen}
	}
	if c.Relay.KeyFile == "" {
		c.Relay.KeyFile = filepath.Join(c.State, "relay.keys")
	}
	switch d := c.Relay.Drain; {
	case d < 0:
		return fmt.Errorf("relay.drain: %v is less than nothing", time.Duration(d))
	case d == 0:
		c.Relay.Drain = duration(defaultDrain)
	}
	if (c.Relay.Certificate == "") != (c.Relay.Key == "") {
		return errors.New("relay.certificate and relay.key go together")
	}
	if n := len(c.Relay.Public) + len(c.Relay.PublicTLS); n > maxHosts {
		return fmt.Errorf("relay.public and relay.public_tls have %d addresses, more than %d", n, maxHosts)
	}
	for key, list := range map[string][]string{"relay.public": c.Relay.Public, "relay.public_tls": c.Relay.PublicTLS} {
		for _, address := range list {
			if _, _, err := splitPublic(address); err != nil {
				return fmt.Errorf("%s: %w", key, err)
			}
		}
	}
	if err := c.identify(); err != nil {
		return err
	}
	if err := c.ports(); err != nil {
		return err
	}
	return c.rule()
}

// ports looks at the addresses that are listened at.
func (c *config) ports() error {
	check := func(key string, list ...string) error {
		for _, address := range list {
			_, port, err := net.SplitHostPort(address)
			if err == nil {
				_, err = net.LookupPort("tcp", port)
			}
			if err != nil {
				return fmt.Errorf("%s: %q is neither :PORT nor ADDRESS:PORT", key, address)
			}
		}
		return nil
	}
	if err := check("relay.listen", c.Relay.Listen...); err != nil {
		return err
	}
	if c.Standalone != nil {
		if err := check("standalone.listen", c.Standalone.Listen...); err != nil {
			return err
		}
	}
	if *c.Metrics.Listen == "" {
		return nil
	}
	return check("metrics.listen", *c.Metrics.Listen)
}

// maxHosts is how many hosts a lease can name (Section 3 of protocol.md).
const maxHosts = 4

// identify finds out who the relay is, and as what.
func (c *config) identify() (err error) {
	if c.Standalone != nil {
		if c.Component != (componentKeys{}) {
			return errors.New("[component] and [standalone] exclude each other: dtcpd serves one domain")
		}
		return c.identifyStandalone()
	}
	if c.Component.Domain == "" {
		return errors.New("component.domain is missing: the address of the relay, such as relay.example.org")
	}
	if c.domain, err = parseDomain(c.Component.Domain); err != nil {
		return fmt.Errorf("component.domain: %w", err)
	}
	if c.Component.Server == "" {
		c.Component.Server = defaultComponentServer
	}
	if c.Component.SecretFile == "" {
		return errors.New("component.secret_file is missing: a file whose first line is the secret that the XMPP server has for this component")
	}
	if c.secret, err = readSecret(c.Component.SecretFile); err != nil {
		return fmt.Errorf("component.secret_file: %w", err)
	}
	return nil
}

func (c *config) identifyStandalone() (err error) {
	s := c.Standalone
	if s.Domain == "" {
		return errors.New("a standalone server needs a domain: --domain, or standalone.domain")
	}
	own, err := parseDomain(s.Domain)
	if err != nil {
		return fmt.Errorf("standalone.domain: %w", err)
	}
	s.Domain = own.Domain()
	if s.Relay == "" {
		s.Relay = "relay." + s.Domain
	}
	if len(s.Listen) == 0 {
		s.Listen = []string{defaultStandaloneListen}
	}
	if s.Public != "" {
		if _, _, err := splitPublic(s.Public); err != nil {
			return fmt.Errorf("standalone.public: %w", err)
		}
	}
	if c.domain, err = parseDomain(s.Relay); err != nil {
		return fmt.Errorf("standalone.relay: %w", err)
	}
	if c.domain == own {
		return errors.New("standalone.relay must be another domain than standalone.domain")
	}
	return nil
}

// rule makes the rules of the relay.
func (c *config) rule() error {
	domains := c.Relay.AllowDomains
	if domains == nil {
		domains = []string{c.parent()}
	}
	for _, d := range domains {
		j, err := parseDomain(d)
		if err != nil {
			return fmt.Errorf("relay.allow_domains: %w", err)
		}
		c.rules.Allow = append(c.rules.Allow, j)
	}
	for _, s := range c.Relay.AllowJIDs {
		j, err := jid.Parse(s)
		if err != nil || !j.IsBare() || j.Local() == "" {
			return fmt.Errorf("relay.allow_jids: %q is no address of a user, like juliet@example.org", s)
		}
		c.rules.Allow = append(c.rules.Allow, j)
	}
	for _, s := range c.Relay.Deny {
		j, err := jid.Parse(s)
		if err != nil || !j.IsBare() {
			return fmt.Errorf("relay.deny: %q is neither a domain nor the address of a user", s)
		}
		c.rules.Deny = append(c.rules.Deny, j)
	}
	c.rules.Limits = relay.Limits{
		PerAddress: c.Limits.Address.quota(), PerOwner: c.Limits.Owner.quota(), Connections: c.Limits.Connections.int(),
	}
	return nil
}

// parent is the domain whose users the relay is for: that above its own.
func (c *config) parent() string {
	if c.Standalone != nil {
		return c.Standalone.Domain
	}
	own := c.domain.Domain()
	if _, parent, ok := strings.Cut(own, "."); ok {
		return parent
	}
	return own
}

func (k quotaKeys) quota() relay.Quota {
	return relay.Quota{
		HalfOpen: k.HalfOpen.int(), Streams: k.Streams.int(), Handshakes: k.Handshakes.int(),
		Rate: int64(k.Rate), BytesPerDay: int64(k.BytesPerDay),
	}
}

// amount is a number of things or bytes: an integer from 1, or a string with
// a unit, such as "10 MB" or "4 GiB", or "none" for no limit.
type amount int64

// units are what an amount may end in; longer names before their ends.
var units = []struct {
	name string
	size float64
}{
	{"KiB", 1 << 10}, {"MiB", 1 << 20}, {"GiB", 1 << 30}, {"TiB", 1 << 40},
	{"kB", 1e3}, {"KB", 1e3}, {"MB", 1e6}, {"GB", 1e9}, {"TB", 1e12}, {"B", 1}, {"", 1},
}

// UnmarshalTOML reads an amount.
func (a *amount) UnmarshalTOML(value any) error {
	switch v := value.(type) {
	case int64:
		if v >= 1 {
			*a = amount(v)
			return nil
		}
	case string:
		if v == "none" {
			*a = -1
			return nil
		}
		for _, u := range units {
			number, ok := strings.CutSuffix(v, u.name)
			if !ok {
				continue
			}
			n, err := strconv.ParseFloat(strings.TrimSpace(number), 64)
			if size := n * u.size; err == nil && size >= 1 && size < math.MaxInt64/2 {
				*a = amount(size)
				return nil
			}
			break
		}
	}
	return fmt.Errorf(`%#v is not an amount, such as 1000, "10 MB", "4 GiB" or "none"`, value)
}

func (a amount) int() int { return int(min(int64(a), math.MaxInt32)) }

// duration is a time such as "90s" or "5m".
type duration time.Duration

// UnmarshalText reads a duration.
func (d *duration) UnmarshalText(text []byte) error {
	v, err := time.ParseDuration(string(text))
	if err != nil {
		return fmt.Errorf("%q is not a time such as 90s or 5m", text)
	}
	*d = duration(v)
	return nil
}

func parseDomain(s string) (jid.JID, error) {
	j, err := jid.Parse(s)
	if err == nil && j != j.Server() {
		err = fmt.Errorf("%q is not a domain", s)
	}
	return j, err
}

// splitPublic reads an address as peers are told it.
func splitPublic(s string) (host string, port uint16, err error) {
	host, number, err := net.SplitHostPort(s)
	if err == nil {
		n, err2 := strconv.ParseUint(number, 10, 16)
		port, err = uint16(n), err2
	}
	if err != nil || host == "" || port == 0 || strings.ContainsAny(host, " /@") {
		return "", 0, fmt.Errorf("%q is not HOST:PORT", s)
	}
	return host, port, nil
}

// stateDirectory is where things are kept that outlive a run.
func stateDirectory() string {
	if dir := os.Getenv("STATE_DIRECTORY"); dir != "" { // of systemd
		first, _, _ := strings.Cut(dir, ":")
		return first
	}
	if os.Geteuid() == 0 {
		return "/var/lib/dtcpd"
	}
	if dir := os.Getenv("XDG_STATE_HOME"); dir != "" {
		return filepath.Join(dir, "dtcpd")
	}
	if home, err := os.UserHomeDir(); err == nil {
		return filepath.Join(home, ".local", "state", "dtcpd")
	}
	return "dtcpd-state"
}

// readUpTo reads a file that must not have more than max bytes.
func readUpTo(path string, max int64) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	text, err := io.ReadAll(io.LimitReader(f, max+1))
	if err == nil && int64(len(text)) > max {
		err = fmt.Errorf("%s: more than %d bytes", path, max)
	}
	return text, err
}

// knownKeys are the keys of the example, which has them all.
func knownKeys() []string {
	var known []string
	// What is commented out there is a key, too.
	meta, err := toml.Decode(uncommented(example), new(config))
	if err != nil {
		return nil // the tests see to it that this cannot be
	}
	for _, key := range meta.Keys() {
		known = append(known, key.String())
	}
	return known
}

// uncommented returns a configuration with the keys that are commented out by a
// "#" without a space behind it.
func uncommented(text string) string {
	lines := strings.Split(text, "\n")
	for i, line := range lines {
		if len(line) > 1 && line[0] == '#' && line[1] != ' ' && line[1] != '#' {
			lines[i] = line[1:]
		}
	}
	return strings.Join(lines, "\n")
}

// nearest returns the known word that takes the fewest letters to change, if
// they are few; a word's part behind its last point may also stand elsewhere.
func nearest(word string, known []string) string {
	best, least := "", max(2, len(word)/4)+1
	for _, k := range known {
		d := distance(word, k)
		if last(word) == last(k) {
			d = min(d, 1)
		}
		if d < least {
			best, least = k, d
		}
	}
	return best
}

func last(key string) string { return key[strings.LastIndexByte(key, '.')+1:] }

// distance is how many letters must be added, removed or replaced to make b of
// a (Levenshtein).
func distance(a, b string) int {
	row := make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := range len(a) {
		next := make([]int, len(b)+1)
		next[0] = i + 1
		for j := range len(b) {
			cost := 1
			if a[i] == b[j] {
				cost = 0
			}
			next[j+1] = slices.Min([]int{row[j] + cost, row[j+1] + 1, next[j] + 1})
		}
		row = next
	}
	return row[len(b)]
}
