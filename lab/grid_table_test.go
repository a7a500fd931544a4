//go:build linux

package lab_test

import (
	"bytes"
	"flag"
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"
	"text/tabwriter"
	"time"
)

var natFlag = flag.String("nat", "", "with -lab: write the table of TestLabGrid into this `file`, between its marks")

// The marks between which -nat writes.
const (
	tableBegins = "<!-- grid: written by go test ./lab -lab -run TestLabGrid -nat FILE -->\n"
	tableEnds   = "<!-- end of grid -->\n"
)

// letters are what a table says for a kind of path.
var letters = map[string]string{host: "h", mapped: "m", reflexive: "p", relayed: "R", "proxy": "X", "stock": "S"}

// entry is what the tables say of a cell: the kinds of its paths, and the median
// of the milliseconds until the responder had its stream.
func (o outcome) entry() string {
	if len(o.paths) == 0 {
		return "-"
	}
	kinds := ""
	for _, p := range o.paths {
		if l := letters[p.kind]; !strings.Contains(kinds, l) {
			kinds += l
		}
	}
	return fmt.Sprintf("%s %d", kinds, o.median(func(p path) time.Duration { return p.responder }).Milliseconds())
}

// grids splits cells into the lines of tables: a row for each who asks, with an
// entry for each who is asked; then those that are in no table.
func (g *grid) grids(cells []gridCell) (header []string, rows [][]string, rest []gridCell) {
	for _, n := range natures {
		header = append(header, n.name)
	}
	places := strings.Join(header, " ") + " "
	for _, c := range cells {
		if !strings.Contains(" "+places, " "+c.Requester+" ") {
			rest = append(rest, c)
			continue
		}
		if len(rows) == 0 || rows[len(rows)-1][0] != c.Requester {
			rows = append(rows, []string{c.Requester})
		}
		rows[len(rows)-1] = append(rows[len(rows)-1], g.entry(c))
	}
	return header, rows, rest
}

func (g *grid) entry(c gridCell) string {
	return g.results[[2]string{c.Requester, c.Responder}].entry()
}

// table is all that is known of the cells, for people at a terminal: a list when
// -run has left some out.
func (g *grid) table(cells []gridCell) string {
	var b bytes.Buffer
	w := tabwriter.NewWriter(&b, 0, 8, 2, ' ', 0)
	header, rows, rest := g.grids(cells)
	if len(g.results) < len(cells) {
		header, rows, rest = nil, nil, slices.DeleteFunc(slices.Clone(cells), func(c gridCell) bool { return g.entry(c) == "-" })
	}
	fmt.Fprintf(w, "asks \\ asked\t%s\n", strings.Join(header, "\t"))
	for _, row := range rows {
		fmt.Fprintln(w, strings.Join(row, "\t"))
	}
	for _, c := range rest {
		fmt.Fprintf(w, "%s, %s:\t%s\n", c.Requester, c.Responder, g.entry(c))
	}
	w.Flush()
	return b.String()
}

// writeTable writes the table into the file of -nat, as Markdown.
func (g *grid) writeTable(t *testing.T, cells []gridCell) {
	t.Helper()
	text, err := os.ReadFile(*natFlag)
	if err != nil {
		t.Fatal(err)
	}
	before, after, ok := bytes.Cut(text, []byte(tableBegins))
	_, after, ok2 := bytes.Cut(after, []byte(tableEnds))
	if !ok || !ok2 {
		t.Fatalf("%s has no line %q with a line %q after it", *natFlag, tableBegins, tableEnds)
	}
	header, rows, rest := g.grids(cells)
	var b bytes.Buffer
	b.Write(before)
	b.WriteString(tableBegins)
	fmt.Fprintf(&b, "\n| asks \\ asked | %s |\n|---%s|\n", strings.Join(header, " | "), strings.Repeat("|---", len(header)))
	for _, row := range rows {
		fmt.Fprintf(&b, "| **%s** | %s |\n", row[0], strings.Join(row[1:], " | "))
	}
	b.WriteString("\n| asks | is asked | path | why |\n|---|---|---|---|\n")
	for _, c := range rest {
		fmt.Fprintf(&b, "| %s | %s | %s | %s |\n", c.Requester, c.Responder, g.entry(c), c.Why)
	}
	b.WriteString("\n" + tableEnds)
	b.Write(after)
	if err := os.WriteFile(*natFlag, b.Bytes(), 0o644); err != nil {
		t.Fatal(err)
	}
}
