package dtcp_test

import (
	"bytes"
	"fmt"
	"go/ast"
	"go/format"
	"go/parser"
	"go/token"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
)

// This file holds the project to its own rules: what may import what, and what
// every file and package must have. Each rule says why it is there. Each test
// counts what it looked at, for a rule that finds nothing to check would pass.

const module = "github.com/dtcp-relay/dtcp"

// A layer says what the Go files of one folder may import besides the standard
// library. Packages of this module are named from its root.
type layer struct {
	why   string
	may   string // packages, separated by spaces
	tests string // what test files may import besides that and the package itself
}

// layers is every folder that holds Go files. A new one needs a row, and so a
// sentence that says why it may import what it does.
var layers = map[string]layer{
	"xmpp/jid": {
		why: "addresses are values: no I/O, nothing of this project",
		may: "golang.org/x/net/idna golang.org/x/text/secure/precis golang.org/x/text/unicode/norm",
	},
	"xmpp/stanza": {
		why: "stanzas are values, made of addresses",
		may: "xmpp/jid",
	},
	"internal/xmlstream": {
		why: "the bounded reader of a stream, shared by its two ends",
		may: "xmpp/jid xmpp/stanza",
	},
	"xmpp": {
		why:   "a login knows nothing of DTCP, so that it can be replaced, and tested without it",
		may:   "internal/xmlstream xmpp/jid xmpp/stanza github.com/xdg-go/scram golang.org/x/net/idna",
		tests: "golang.org/x/net/dns/dnsmessage internal/memnet internal/rendezvous",
	},
	"internal/rendezvous": {
		why:   "a server shares with a client the stream and its values, and no more",
		may:   "internal/xmlstream xmpp/jid xmpp/stanza github.com/xdg-go/scram golang.org/x/net/idna",
		tests: "internal/memnet xmpp",
	},
	"internal/wire": {
		why: "lines and proofs are bytes: the relay will read them without knowing a session",
	},
	"internal/firstbyte": {
		why: "one byte, shared by endpoints and relays, which share nothing but the wire",
	},
	"internal/socks5": {
		why:   "a codec of bytes: what a bytestream is for, its two ends know",
		tests: "golang.org/x/net/proxy",
	},
	"internal/gather": {
		why: "what the machine can offer is asked of the operating system alone",
		may: "golang.org/x/sys/unix",
	},
	"internal/gather/portmap": {
		why: "who asks gateways knows nothing of what a port is for",
		may: "github.com/huin/goupnp github.com/huin/goupnp/dcps/internetgateway2 github.com/huin/goupnp/soap " +
			"github.com/libp2p/go-netroute",
	},
	"internal/gather/stun": {
		why: "a codec and one question, over any net.Conn",
	},
	"internal/egress": {
		why: "a way out of a network, whatever goes over it: nothing of this project",
		may: "golang.org/x/net/http/httpproxy golang.org/x/net/proxy",
	},
	"internal/relay": {
		why: "a relay shares with an endpoint the wire, and with its server stanzas; it knows no session and no login",
		may: "internal/epoll internal/firstbyte internal/pump internal/socks5 internal/wire xmpp/jid xmpp/stanza " +
			"golang.org/x/sys/unix golang.org/x/time/rate",
		tests: "internal/memnet github.com/google/go-cmp/cmp",
	},
	"internal/epoll": {
		why: "waiting for descriptors, whatever they are: the operating system alone",
		may: "golang.org/x/sys/unix",
	},
	"internal/pump": {
		why:   "bytes between two connections, whatever they mean: the operating system alone",
		may:   "internal/epoll golang.org/x/sys/unix",
		tests: "internal/memnet",
	},
	"internal/memnet": {
		why:   "an internet knows nothing of what runs on it",
		tests: "golang.org/x/net/nettest",
	},
	".": {
		why: "any XMPP library can signal, so not package xmpp; it needs addresses and stanzas",
		may: "internal/gather internal/gather/portmap internal/gather/stun internal/socks5 internal/wire xmpp/jid xmpp/stanza github.com/tyler-smith/go-bip39/wordlists " +
			"golang.org/x/sys/unix golang.org/x/sys/windows",
		tests: "internal/memnet internal/relay internal/rendezvous xmpp golang.org/x/net/nettest github.com/google/go-cmp/cmp",
	},
	"internal/profile": {
		why:   "what the tool remembers is fingerprints and addresses, not how streams are made",
		may:   ". xmpp/jid github.com/rogpeppe/go-internal/lockedfile github.com/rogpeppe/go-internal/robustio",
		tests: "github.com/google/go-cmp/cmp",
	},
	"internal/transfer": {
		why:   "files go over any stream of bytes: nothing of this project",
		may:   "golang.org/x/sys/unix golang.org/x/sys/windows golang.org/x/text/cases golang.org/x/text/unicode/norm",
		tests: "github.com/google/go-cmp/cmp",
	},
	"cmd/dtcp": {
		why: "a program joins everything; nothing joins a program",
		may: ". internal/egress internal/profile internal/relay internal/rendezvous internal/transfer xmpp xmpp/jid xmpp/stanza " +
			"github.com/spf13/cobra github.com/spf13/pflag golang.org/x/sys/unix golang.org/x/term",
		tests: "github.com/google/go-cmp/cmp github.com/rogpeppe/go-internal/testscript",
	},
	"cmd/dtcpd": {
		why: "a program joins everything; nothing joins a program, and metrics stay out of what is shipped to users",
		may: "internal/epoll internal/relay internal/rendezvous internal/wire xmpp xmpp/jid xmpp/stanza " +
			"github.com/BurntSushi/toml github.com/prometheus/client_golang/prometheus github.com/prometheus/client_golang/prometheus/collectors " +
			"github.com/prometheus/client_golang/prometheus/promhttp github.com/rogpeppe/go-internal/lockedfile " +
			"github.com/spf13/cobra golang.org/x/sys/unix golang.org/x/term",
		tests: "internal/xmlstream github.com/google/go-cmp/cmp github.com/rogpeppe/go-internal/testscript",
	},
	"lab": {
		why:   "the harness drives programs from outside; only its benchmarks use the library, and gateways are asked for mappings directly",
		may:   "golang.org/x/sys/unix",
		tests: ". internal/gather internal/gather/portmap internal/wire xmpp xmpp/jid xmpp/stanza github.com/google/go-cmp/cmp",
	},
	"lab/attacker": {
		why: "who attacks a relay says to it what the wire has, and nothing else of ours",
		may: "internal/wire",
	},
	"lab/barepeer": {
		why: "the program to compare with must have nothing of ours in it",
	},
}

// source is one Go file of the project.
type source struct {
	path string // from the root, with slashes
	text []byte
	fset *token.FileSet
	tree *ast.File
}

func (s source) dir() string            { return path.Dir(s.path) }
func (s source) isTest() bool           { return strings.HasSuffix(s.path, "_test.go") }
func (s source) line(p token.Pos) int   { return s.fset.Position(p).Line }
func (s source) at(n ast.Node) string   { return fmt.Sprintf("%s:%d", s.path, s.line(n.Pos())) }
func (s source) within(dir string) bool { return s.dir() == dir || strings.HasPrefix(s.path, dir+"/") }

// readSources parses every Go file, those for other systems too.
var readSources = sync.OnceValues(func() ([]source, error) {
	var found []source
	err := filepath.WalkDir(".", func(file string, d fs.DirEntry, err error) error {
		name := d.Name()
		switch {
		case err != nil:
			return err
		case d.IsDir() && (name == "testdata" || len(name) > 1 && strings.ContainsAny(name[:1], "._")):
			return filepath.SkipDir // as the go command does
		case d.IsDir(), !strings.HasSuffix(name, ".go"):
			return nil
		}
		s := source{path: filepath.ToSlash(file), fset: token.NewFileSet()}
		if s.text, err = os.ReadFile(file); err != nil {
			return err
		}
		s.tree, err = parser.ParseFile(s.fset, s.path, s.text, parser.ParseComments|parser.SkipObjectResolution)
		found = append(found, s)
		return err
	})
	return found, err
})

func sources(t *testing.T) []source {
	t.Helper()
	all, err := readSources()
	if err != nil {
		t.Fatal(err)
	}
	if len(all) < 120 {
		t.Fatalf("found %d Go files, want all: has something moved?", len(all))
	}
	return all
}

// enough fails a test that has looked at too little.
func enough(t *testing.T, what string, got, least int) {
	t.Helper()
	if got < least {
		t.Errorf("checked %d %s, want at least %d: has something moved?", got, what, least)
	}
	t.Logf("checked %d %s", got, what)
}

// imported returns what a file imports, packages of this module from its root,
// without the standard library.
func (s source) imported() []string {
	var found []string
	for _, i := range s.tree.Imports {
		p, _ := strconv.Unquote(i.Path.Value)
		switch local, ours := strings.CutPrefix(p, module); {
		case ours && local == "":
			found = append(found, ".")
		case ours:
			found = append(found, local[1:])
		case strings.Contains(strings.Split(p, "/")[0], "."):
			found = append(found, p)
		}
	}
	return found
}

// TestImports: see layers.
func TestImports(t *testing.T) {
	seen := map[string]bool{}
	imports := 0
	for _, s := range sources(t) {
		l, ok := layers[s.dir()]
		if !ok {
			t.Errorf("%s: the folder %s has no row in layers: say what it may import, and why", s.path, s.dir())
			continue
		}
		seen[s.dir()] = true
		may := strings.Fields(l.may)
		if s.isTest() {
			may = append(append(may, s.dir()), strings.Fields(l.tests)...)
		}
		for _, p := range s.imported() {
			imports++
			if !slices.Contains(may, p) {
				t.Errorf("%s imports %s, which %s may not (%s)", s.path, p, s.dir(), l.why)
			}
		}
	}
	enough(t, "folders", len(seen), 13)
	enough(t, "imports", imports, 150)
}

// TestModules: every module that go.mod requires is imported, and
// doc/decisions/0001 says why it is there.
func TestModules(t *testing.T) {
	text, err := os.ReadFile("go.mod")
	if err != nil {
		t.Fatal(err)
	}
	decision, err := os.ReadFile("doc/decisions/0001-dependencies.md")
	if err != nil {
		t.Fatal(err)
	}
	var modules []string
	for _, line := range strings.Split(string(text), "\n") {
		fields := strings.Fields(strings.TrimPrefix(line, "require "))
		if len(fields) == 2 && strings.Contains(fields[0], ".") && strings.HasPrefix(fields[1], "v") {
			modules = append(modules, fields[0])
		}
	}
	used := map[string]bool{}
	for _, s := range sources(t) {
		for _, p := range s.imported() {
			for _, m := range modules {
				used[m] = used[m] || p == m || strings.HasPrefix(p, m+"/")
			}
		}
	}
	for _, m := range modules {
		if !used[m] {
			t.Errorf("go.mod requires %s, which nothing imports", m)
		}
		if !strings.Contains(string(decision), "`"+m+"`") {
			t.Errorf("doc/decisions/0001-dependencies.md does not say why %s is needed", m)
		}
	}
	enough(t, "modules", len(modules), 6)
}

// maxLines is as long as a file may be: one noun or verb, read in one sitting.
const maxLines = 600

// leftOver is what must not stay behind in a comment: work that is not done
// belongs into an issue, a linter's complaint is to be answered, not silenced.
var leftOver = regexp.MustCompile(`T[O]DO|F[I]XME|X[X]X|n[o]lint|lint:ignor[e]`)

// TestFiles: gofmt, length, and nothing left over.
func TestFiles(t *testing.T) {
	for _, s := range sources(t) {
		if formatted, err := format.Source(s.text); err != nil || !bytes.Equal(formatted, s.text) {
			t.Errorf("%s: gofmt would change it (%v)", s.path, err)
		}
		if n := bytes.Count(s.text, []byte("\n")); n > maxLines {
			t.Errorf("%s has %d lines, more than %d", s.path, n, maxLines)
		}
		for _, g := range s.tree.Comments {
			for _, c := range g.List {
				if word := leftOver.FindString(c.Text); word != "" {
					t.Errorf("%s: %s in a comment", s.at(c), word)
				}
			}
		}
	}
}

// TestPackages: each has a comment that begins as go doc wants it, and tests.
func TestPackages(t *testing.T) {
	type facts struct {
		doc, tests, code bool
	}
	packages := map[string]*facts{}
	for _, s := range sources(t) {
		f := packages[s.dir()]
		if f == nil {
			f = &facts{}
			packages[s.dir()] = f
		}
		if s.isTest() {
			f.tests = true
			continue
		}
		f.code = true
		begins := []string{"Package " + s.tree.Name.Name + " "}
		if s.tree.Name.Name == "main" {
			name := path.Base(s.dir())
			begins = []string{"Command " + name + " ", strings.ToUpper(name[:1]) + name[1:] + " "}
		}
		f.doc = f.doc || slices.ContainsFunc(begins, func(b string) bool { return strings.HasPrefix(s.tree.Doc.Text(), b) })
	}
	for dir, f := range packages {
		if f.code && !f.doc {
			t.Errorf("%s has no package comment", dir)
		}
		if !f.tests {
			t.Errorf("%s has no tests", dir)
		}
	}
	enough(t, "packages", len(packages), 12)
}

// TestGoStatements: above each go statement a comment says who owns the
// goroutine, what ends it, and who waits; one comment may speak for several in
// a row. Tests are exempt: there it is the test, and leaks fail it.
func TestGoStatements(t *testing.T) {
	count := 0
	for _, s := range sources(t) {
		if s.isTest() {
			continue
		}
		commented := map[int]bool{} // lines
		for _, g := range s.tree.Comments {
			for l := s.line(g.Pos()); l <= s.line(g.End()); l++ {
				commented[l] = true
			}
		}
		ast.Inspect(s.tree, func(n ast.Node) bool {
			var list []ast.Stmt
			switch n := n.(type) {
			case *ast.BlockStmt:
				list = n.List
			case *ast.CaseClause:
				list = n.Body
			case *ast.CommClause:
				list = n.Body
			}
			explained := false
			for _, statement := range list {
				if !startsGoroutine(statement) {
					explained = false
					continue
				}
				count++
				line := s.line(statement.Pos())
				explained = explained || commented[line] || commented[line-1]
				if !explained {
					t.Errorf("%s: a goroutine without a comment: who owns it, what ends it, who waits?", s.at(statement))
				}
			}
			return true
		})
	}
	enough(t, "go statements", count, 15)
}

// startsGoroutine reports whether a statement is go f() or group.Go(f).
func startsGoroutine(statement ast.Stmt) bool {
	if _, ok := statement.(*ast.GoStmt); ok {
		return true
	}
	e, ok := statement.(*ast.ExprStmt)
	if !ok {
		return false
	}
	call, ok := e.X.(*ast.CallExpr)
	if !ok || len(call.Args) != 1 {
		return false
	}
	selector, ok := call.Fun.(*ast.SelectorExpr)
	return ok && selector.Sel.Name == "Go"
}

// TestTestsAreDefinite: a test that sleeps depends on chance, and one that
// skips says less than its name. The lab may sleep: it watches programs that
// nobody else can ask. Virtual time passes by timers.
func TestTestsAreDefinite(t *testing.T) {
	files := 0
	for _, s := range sources(t) {
		if !s.isTest() {
			continue
		}
		files++
		ast.Inspect(s.tree, func(n ast.Node) bool {
			selector, ok := n.(*ast.SelectorExpr)
			if !ok {
				return true
			}
			switch name := selector.Sel.Name; {
			case name == "Sleep" && !s.within("lab"):
				if x, ok := selector.X.(*ast.Ident); ok && x.Name == "time" {
					t.Errorf("%s: sleeps; wait for a channel or, in virtual time, for a timer", s.at(n))
				}
			case slices.Contains([]string{"Sk" + "ip", "Sk" + "ipf", "Sk" + "ipNow"}, name):
				t.Errorf("%s: skips", s.at(n))
			}
			return true
		})
	}
	enough(t, "test files", files, 50)
}

// TestImportedForTestsOnly: memnet has the faults of networks on purpose, and
// the lab starts programs; neither may end up in what is shipped.
func TestImportedForTestsOnly(t *testing.T) {
	inTests := 0
	for _, s := range sources(t) {
		for _, p := range s.imported() {
			switch {
			case p != "internal/memnet" && p != "lab":
			case s.isTest():
				inTests++
			default:
				t.Errorf("%s imports %s, which is for tests", s.path, p)
			}
		}
	}
	enough(t, "imports of what is for tests", inTests, 5)
}

// minSeeds is how many inputs a fuzz target must have without -fuzz: they are
// its test, and a folder of seeds that has moved leaves it none.
const minSeeds = 3

// TestFuzzSeeds counts the seeds of every fuzz target, and finds corpora whose
// target is gone.
func TestFuzzSeeds(t *testing.T) {
	targets := map[string]bool{} // folder/name
	for _, s := range sources(t) {
		for _, d := range s.tree.Decls {
			f, ok := d.(*ast.FuncDecl)
			if !ok || !s.isTest() || f.Recv != nil || !strings.HasPrefix(f.Name.Name, "Fuzz") {
				continue
			}
			corpus := path.Join(s.dir(), "testdata", "fuzz", f.Name.Name)
			targets[corpus] = true
			files, err := os.ReadDir(corpus)
			if err != nil && !os.IsNotExist(err) {
				t.Error(err)
			}
			if n := countSeeds(f) + len(files); n < minSeeds {
				t.Errorf("%s: %s has %d seeds, want %d; counted are calls of Add, loops over a literal around them, and a helper's arguments",
					s.at(f), f.Name.Name, n, minSeeds)
			}
		}
	}
	enough(t, "fuzz targets", len(targets), 7)
	corpora, err := filepath.Glob("testdata/fuzz/*")
	for dir := range layers {
		more, err2 := filepath.Glob(filepath.FromSlash(dir) + "/testdata/fuzz/*")
		if corpora = append(corpora, more...); err == nil {
			err = err2
		}
	}
	if err != nil {
		t.Error(err)
	}
	for _, c := range corpora {
		if !targets[path.Clean(filepath.ToSlash(c))] {
			t.Errorf("%s holds seeds of a fuzz target that is not there", c)
		}
	}
}

// countSeeds counts what a fuzz target adds, as far as its text tells.
func countSeeds(f *ast.FuncDecl) (n int) {
	lists := map[string]int{} // local variables that are literals
	fuzzer := f.Type.Params.List[0].Names[0].Name
	var count func(node ast.Node, times int)
	count = func(node ast.Node, times int) {
		ast.Inspect(node, func(inner ast.Node) bool {
			switch inner := inner.(type) {
			case *ast.AssignStmt:
				for i, right := range inner.Rhs {
					literal, isLiteral := right.(*ast.CompositeLit)
					if left, ok := inner.Lhs[i].(*ast.Ident); ok && isLiteral {
						lists[left.Name] = len(literal.Elts)
					}
				}
			case *ast.RangeStmt:
				switch over := inner.X.(type) {
				case *ast.CompositeLit:
					count(inner.Body, times*len(over.Elts))
				case *ast.Ident:
					count(inner.Body, times*lists[over.Name])
				}
				return false
			case *ast.CallExpr:
				if selector, ok := inner.Fun.(*ast.SelectorExpr); ok {
					if x, ok := selector.X.(*ast.Ident); ok && x.Name == fuzzer {
						if selector.Sel.Name == "Add" {
							n += times
						}
						return selector.Sel.Name != "Fuzz"
					}
				}
				if len(inner.Args) > 1 {
					if x, ok := inner.Args[0].(*ast.Ident); ok && x.Name == fuzzer {
						n += times * (len(inner.Args) - 1) // a helper that adds its arguments
					}
				}
			}
			return true
		})
	}
	count(f.Body, 1)
	return n
}
