package dtcp_test

import (
	"fmt"
	"go/ast"
	"os"
	"path"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/dtcp-relay/dtcp"
	"github.com/dtcp-relay/dtcp/xmpp/jid"
)

// This file holds the documents to the code: what they say must be there.

func readDocument(t *testing.T, name string) string {
	t.Helper()
	text, err := os.ReadFile(filepath.FromSlash(name))
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

// documents returns all pages, by their path from the root.
func documents(t *testing.T) map[string]string {
	t.Helper()
	pages := map[string]string{}
	for _, pattern := range []string{"*.md", "doc/*.md", "doc/decisions/*.md"} {
		files, err := filepath.Glob(pattern)
		if err != nil {
			t.Fatal(err)
		}
		for _, f := range files {
			name := filepath.ToSlash(f)
			pages[name] = readDocument(t, name)
		}
	}
	enough(t, "documents", len(pages), 14)
	return pages
}

var (
	pageLink = regexp.MustCompile(`\]\(([^)\s]+)\)`)
	heading  = regexp.MustCompile(`(?m)^#+ (.+)$`)
	noWord   = regexp.MustCompile(`[^\p{L}\p{N} _-]`)
)

// anchors returns the names by which the headings of a page can be linked to.
func anchors(page string) []string {
	var found []string
	for _, h := range heading.FindAllStringSubmatch(page, -1) {
		found = append(found, strings.ReplaceAll(noWord.ReplaceAllString(strings.ToLower(h[1]), ""), " ", "-"))
	}
	return found
}

// TestLinks: every link from page to page leads somewhere.
func TestLinks(t *testing.T) {
	pages := documents(t)
	links := 0
	for name, text := range pages {
		for _, l := range pageLink.FindAllStringSubmatch(text, -1) {
			links++
			file, anchor, _ := strings.Cut(l[1], "#")
			target := name
			if file != "" {
				target = path.Join(path.Dir(name), file)
			}
			if _, err := os.Stat(filepath.FromSlash(target)); err != nil {
				t.Errorf("%s links to %s: %v", name, l[1], err)
			} else if anchor != "" && !slices.Contains(anchors(pages[target]), anchor) {
				t.Errorf("%s links to %s, which has no such heading", name, l[1])
			}
		}
	}
	enough(t, "links", links, 25)
}

// TestSectionsCited: comments cite sections of doc/protocol.md by number, so
// these must be there and stay as they are.
func TestSectionsCited(t *testing.T) {
	sections := map[string]bool{}
	for _, m := range regexp.MustCompile(`(?m)^## (\d)\. `).FindAllStringSubmatch(readDocument(t, "doc/protocol.md"), -1) {
		sections[m[1]] = true
	}
	for n := 1; n <= 6; n++ {
		if !sections[strconv.Itoa(n)] {
			t.Errorf("doc/protocol.md has no section %d", n)
		}
	}
	cited := regexp.MustCompile(`Sections? ([0-9, and]+) of\s+protocol\.md`)
	number := regexp.MustCompile(`\d+`)
	citations := 0
	for _, s := range sources(t) {
		for _, g := range s.tree.Comments {
			for _, c := range cited.FindAllStringSubmatch(g.Text(), -1) {
				citations++
				for _, n := range number.FindAllString(c[1], -1) {
					if !sections[n] {
						t.Errorf("%s cites section %s of protocol.md, which is not there", s.at(g), n)
					}
				}
			}
		}
	}
	enough(t, "citations", citations, 30)
}

// TestDecisions: notes are numbered without gaps, have the three parts, and are
// listed in doc/design.md.
func TestDecisions(t *testing.T) {
	files, err := filepath.Glob("doc/decisions/*")
	if err != nil {
		t.Fatal(err)
	}
	design := readDocument(t, "doc/design.md")
	name := regexp.MustCompile(`^(\d{4})-[a-z0-9-]+\.md$`)
	for i, f := range files { // sorted
		base := filepath.Base(f)
		m := name.FindStringSubmatch(base)
		if m == nil || m[1] != fmt.Sprintf("%04d", i+1) {
			t.Errorf("%s: want a name that begins with %04d", f, i+1)
			continue
		}
		text := readDocument(t, f)
		if !strings.HasPrefix(text, fmt.Sprintf("# %d. ", i+1)) {
			t.Errorf("%s: want the title to begin with # %d.", f, i+1)
		}
		for _, part := range []string{"**Context.**", "**Decision.**", "**Consequence.**"} {
			if strings.Count(text, part) != 1 {
				t.Errorf("%s: want one %s", f, part)
			}
		}
		if !strings.Contains(design, "](decisions/"+base+")") {
			t.Errorf("doc/design.md does not list %s", f)
		}
	}
	enough(t, "decisions", len(files), 6)
}

// TestPhraseVector: the example in doc/protocol.md is true.
func TestPhraseVector(t *testing.T) {
	const party = `(?m)^ +(\S+@\S+) +((?:[0-9A-F]{2}:){31}[0-9A-F]{2})\n`
	m := regexp.MustCompile(party + party + `^ +((?:[a-z]+ ){11}[a-z]+)\n`).FindStringSubmatch(readDocument(t, "doc/protocol.md"))
	if m == nil {
		t.Fatal("doc/protocol.md has no example of a phrase")
	}
	a, err := dtcp.ParseFingerprint(m[2])
	if err != nil {
		t.Fatal(err)
	}
	b, err := dtcp.ParseFingerprint(m[4])
	if err != nil {
		t.Fatal(err)
	}
	if got := dtcp.Phrase(jid.MustParse(m[1]), a, jid.MustParse(m[3]), b); got != m[5] {
		t.Errorf("the phrase is %q, doc/protocol.md says %q", got, m[5])
	}
}

// TestReadmeLibrary: the function that README.md shows is the one that is
// compiled and run as an example.
func TestReadmeLibrary(t *testing.T) {
	m := regexp.MustCompile("(?s)```go\n(.*?)```").FindStringSubmatch(readDocument(t, "README.md"))
	if m == nil {
		t.Fatal("README.md shows no Go")
	}
	if !strings.Contains(readDocument(t, "example_test.go"), "\n"+m[1]+"\n") {
		t.Errorf("what README.md shows is not in example_test.go:\n%s", m[1])
	}
}

// commands reads from the source of cmd/dtcp which commands there are, and
// which flags each has besides the common ones, which are those of "".
func commands(t *testing.T) map[string][]string {
	t.Helper()
	found := map[string][]string{"": {"help"}, "help": nil}
	for _, s := range sources(t) {
		if s.dir() != "cmd/dtcp" || s.isTest() {
			continue
		}
		for _, d := range s.tree.Decls {
			f, ok := d.(*ast.FuncDecl)
			if !ok {
				continue
			}
			names, flags := commandsOf(f)
			if f.Name.Name == "register" {
				names = []string{""}
			}
			for _, n := range names {
				found[n] = append(found[n], flags...)
			}
		}
	}
	enough(t, "common flags", len(found[""]), 18)
	enough(t, "commands", len(found), 11)
	return found
}

// commandsOf returns the commands that a function makes and the flags that it
// registers.
func commandsOf(f *ast.FuncDecl) (names, flags []string) {
	text := func(e ast.Expr) string {
		literal, ok := e.(*ast.BasicLit)
		if !ok {
			return ""
		}
		s, _ := strconv.Unquote(literal.Value)
		return s
	}
	ast.Inspect(f, func(n ast.Node) bool {
		switch n := n.(type) {
		case *ast.KeyValueExpr:
			if key, ok := n.Key.(*ast.Ident); ok && key.Name == "Use" {
				names = append(names, strings.Fields(text(n.Value))[0])
			}
		case *ast.CallExpr:
			switch fun := n.Fun.(type) {
			case *ast.Ident:
				if fun.Name == "serviceFlag" {
					flags = append(flags, "service")
				}
			case *ast.SelectorExpr:
				if strings.Contains(fun.Sel.Name, "Var") && len(n.Args) > 2 {
					flags = append(flags, text(n.Args[1]))
				}
			}
		}
		return true
	})
	return names, flags
}

// TestReadmeCommands: every command line of README.md names a command and flags
// that there are, and every flag that the text mentions exists.
func TestReadmeCommands(t *testing.T) {
	known := commands(t)
	readme := readDocument(t, "README.md")
	run := regexp.MustCompile(`(?:^|[\s'"|/])dtcp ([^|<>'"` + "`" + `]*)`)
	block := regexp.MustCompile("(?m)^    .*$|`[^`\n]+`")
	lines, flags := 0, 0
	for _, code := range block.FindAllString(readme, -1) {
		for _, m := range run.FindAllStringSubmatch(strings.Trim(code, "`"), -1) {
			words := strings.Fields(m[1])
			if len(words) == 0 || strings.HasPrefix(words[0], "./") {
				continue // the path of the program
			}
			lines++
			command := words[0]
			if command == "peers" && len(words) > 1 {
				command = words[1]
			}
			own, ok := known[command]
			if !ok {
				t.Errorf("%q: there is no command %s", code, command)
				continue
			}
			for _, w := range words {
				if name, ok := strings.CutPrefix(w, "--"); ok {
					flags++
					name, _, _ = strings.Cut(name, "=")
					if !slices.Contains(own, name) && !slices.Contains(known[""], name) {
						t.Errorf("%q: %s has no flag --%s", code, command, name)
					}
				}
			}
		}
	}
	var all []string
	for _, own := range known {
		all = append(all, own...)
	}
	for _, m := range regexp.MustCompile("`--([a-z-]+)").FindAllStringSubmatch(readme, -1) {
		flags++
		if !slices.Contains(all, m[1]) {
			t.Errorf("README.md mentions --%s, which no command has", m[1])
		}
	}
	enough(t, "command lines in README.md", lines, 20)
	enough(t, "flags in README.md", flags, 20)
}

// TestReadmePromises: the two commands that README.md begins with stand on
// lines of their own, where .ci/run looks for one of them.
func TestReadmePromises(t *testing.T) {
	readme := readDocument(t, "README.md")
	for _, command := range []string{"go run ./cmd/dtcp demo", "go test ./..."} {
		if !strings.Contains(readme, "\n    "+command+"\n") {
			t.Errorf("README.md does not tell people to run %s", command)
		}
	}
}
