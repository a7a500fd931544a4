package transfer_test

import (
	"strings"
	"testing"
	"unicode/utf8"

	"github.com/dtcp-relay/dtcp/internal/transfer"
)

// hostileNames are names that no receiver may give to anything.
var hostileNames = []string{
	"", ".", "..", "/", "//", "a/b", "/etc/passwd", "../up", "..\\up", "a\\b", "\\\\server\\share", "\\",
	"C:", "C:\\autoexec.bat", "c:file", "file:stream", "file::$DATA", ":", "a?b", "a*b", "a<b", "a>b", "a|b", `a"b`,
	"a\x00b", "\x00", "a\nb", "a\rb", "a\tb", "a\x1b[31mb", "\x7f", "a\u0085b", "a\u009bb",
	"a\u2028b", "a\u2029b", "a\u202eb", "a\u202ab", "a\u2066b", "a\u2069b",
	"\xff", "a\xc3", "\xed\xa0\x80", "\xc0\xae\xc0\xae", "a\ufffdb",
	"CON", "con", "Con.txt", "PRN", "AUX", "aux.tar.gz", "NUL", "nul.", "NUL .txt", "COM0", "COM1", "com9.log", "COM¹", "LPT1", "lpt9", "LPT²", "LPT³.x", "CONIN$", "CONOUT$", "conout$.txt", "CLOCK$",
	"a.", "a..", "a ", "a. ", " ", "...", "trailing.txt ",
	".dtcp-", ".dtcp-0123456789abcdef", ".DTCP-0123456789ABCDEF", ".Dtcp-x",
	strings.Repeat("a", 256), strings.Repeat("ä", 128),
}

// goodNames are names in ten scripts, and some that only look dangerous.
var goodNames = []string{
	"readme.txt", "Ünïcödé – naïve.txt", "Привет.txt", "Ελληνικά.txt", "日本語のファイル.txt", "简体中文", "한국어.hwp", "العربية.txt", "עברית.txt", "हिन्दी.txt", "ภาษาไทย.txt", "ქართული", "🙂 emoji.png",
	" leading space", ".hidden", "..two", "...three dots", "con1", "CONSOLE", "nul-and-void", "COM", "COM10", "LPT", "com١", "aux2.txt", "~", "-", "--help", "$HOME", "`id`", "a;b&c", "%2e%2e", "a'b", "#", "x.part", ".dtcp", "dtcp-1",
	strings.Repeat("a", 255), strings.Repeat("ä", 127), "a\u200db", "e\u0301",
}

func TestCheckName(t *testing.T) {
	for _, name := range hostileNames {
		if transfer.CheckName(name) == nil {
			t.Errorf("%q is allowed", name)
		}
	}
	for _, name := range goodNames {
		if err := transfer.CheckName(name); err != nil {
			t.Errorf("%q is refused: %v", name, err)
		}
	}
	if len(hostileNames) < 60 || len(goodNames) < 30 {
		t.Errorf("%d hostile and %d good names: too few", len(hostileNames), len(goodNames))
	}
}

func TestFold(t *testing.T) {
	for _, pair := range [][2]string{
		{"README", "readme"}, {"\u00e9", "e\u0301"}, {"\u00c9", "e\u0301"}, {"STRASSE", "straße"}, {"Σ", "ς"}, {"\u212a", "k"}, {"ﬁle", "file"}, {"Ǆ", "ǆ"}, {"\u1e9e", "ss"},
	} {
		if a, b := transfer.Fold(pair[0]), transfer.Fold(pair[1]); a != b {
			t.Errorf("%q and %q are not taken for equal: %q, %q", pair[0], pair[1], a, b)
		}
	}
	for _, pair := range [][2]string{{"a", "b"}, {"a", "ä"}, {"1", "¹"}, {"и", "й"}, {"がcafe", "かcafe"}} {
		if transfer.Fold(pair[0]) == transfer.Fold(pair[1]) {
			t.Errorf("%q and %q are taken for equal", pair[0], pair[1])
		}
	}
}

func TestNumbered(t *testing.T) {
	long := strings.Repeat("ä", 127)
	for _, c := range []struct {
		name string
		n    int
		want string
	}{
		{"a.txt", 0, "a.txt"}, {"a.txt", 1, "a (1).txt"}, {"a.txt", 12, "a (12).txt"}, {"a", 2, "a (2)"}, {".profile", 1, ".profile (1)"}, {"a.tar.gz", 1, "a (1).tar.gz"}, {".tar.gz", 1, ".tar (1).gz"},
		{"a.this is no extension", 1, "a.this is no extension (1)"}, {long, 1, strings.Repeat("ä", 125) + " (1)"}, {long[:250] + ".txt", 1, strings.Repeat("ä", 123) + " (1).txt"},
	} {
		got := transfer.Numbered(c.name, c.n)
		if got != c.want {
			t.Errorf("%q, %d: %q, want %q", c.name, c.n, got, c.want)
		}
	}
	for _, name := range goodNames {
		for _, got := range []string{transfer.Numbered(name, 999), transfer.PartName(name, 0), transfer.PartName(name, 999)} {
			if err := transfer.CheckName(got); err != nil || !utf8.ValidString(got) {
				t.Errorf("of %q is made %q: %v", name, got, err)
			}
		}
	}
}

func TestCheckTarget(t *testing.T) {
	for _, c := range []struct {
		target string
		depth  int
		ok     bool
	}{
		{"a", 1, true}, {"a/b/c", 1, true}, {"./a", 1, true}, {"a//b", 1, true}, {".", 1, true}, {"..", 2, true}, {"../a", 2, true}, {"../../a/b", 3, true}, {"./../a", 2, true}, {"a/", 1, true}, {".dtcp", 1, true},
		{"", 1, false}, {"a", 0, false}, {"/", 1, false}, {"/etc/passwd", 1, false}, {"//server/share", 1, false}, {"\\x", 1, false}, {"C:/x", 1, false}, {"a\\..\\..", 1, false},
		{"..", 1, false}, {"../a", 1, false}, {"../..", 2, false}, {"../../a", 2, false}, {"a/..", 1, false}, {"a/../b", 3, false}, {"../a/../b", 3, false}, {"a/../../b", 1, false},
		{"a\x00b", 1, false}, {"a\nb", 1, false}, {"\xff", 1, false}, {"NUL", 1, false}, {".dtcp-0123456789abcdef", 1, false}, {strings.Repeat("a/", 2048), 1, false},
	} {
		if err := transfer.CheckTarget(c.target, c.depth); (err == nil) != c.ok {
			t.Errorf("a link to %.40q in %d folders: %v, want allowed %t", c.target, c.depth, err, c.ok)
		}
	}
}

func TestClean(t *testing.T) {
	for in, want := range map[string]string{
		"plain":           "plain",
		"a\x1b[2Jb\r\n":   "a\ufffd[2Jb\ufffd\ufffd",
		"\xff\xfe":        "\ufffd",
		"a\u202egnp.exe":  "a\ufffdgnp.exe",
		"a\u200db \u00e4": "a\u200db \u00e4",
	} {
		if got := transfer.Clean(in); got != want {
			t.Errorf("%q became %q, want %q", in, got, want)
		}
	}
	if got := transfer.Clean(strings.Repeat("ä", 5000)); len(got) > 1024 || !utf8.ValidString(got) {
		t.Errorf("%d bytes are left, valid %t", len(got), utf8.ValidString(got))
	}
}
