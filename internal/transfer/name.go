package transfer

import (
	"errors"
	"fmt"
	"strings"
	"unicode/utf8"

	"golang.org/x/text/cases"
	"golang.org/x/text/unicode/norm"
)

// journalPrefix begins the names of a receiver's own notes. Nobody may send a
// file of such a name: it could claim other files to be parts.
const journalPrefix = ".dtcp-"

// partSuffix ends the name of a file that is not complete.
const partSuffix = ".part"

// Errors of names (Section 6 of transfer.md).
var (
	errNameEmpty    = errors.New("an empty name")
	errNameDots     = errors.New("a name that stands for another folder")
	errNameLong     = fmt.Errorf("a name longer than %d bytes", maxName)
	errNameUTF8     = errors.New("a name that is not UTF-8")
	errNameControl  = errors.New("a name with characters that cannot be seen")
	errNameSlash    = errors.New("a name with a slash or backslash")
	errNameReserved = errors.New("a name that this program keeps for itself")
	errNameDevice   = errors.New("a name that is a device on Windows")
	errNameWindows  = errors.New("a name with a character that Windows does not take: < > : \" | ? *")
	errNameEnd      = errors.New("a name that ends with a dot or a space, which Windows drops")
	errNameHidden   = errors.New("a name that begins with a dot, which is taken only where a person is asked")
	errNameTaken    = errors.New("a name that differs from another one only in case or composition")
)

// checkName says whether an entry may have this name: one component, the same
// to look at on every system, and never more than a name on any of them
// (Section 6 of transfer.md). The rules are the same everywhere, because a
// folder that was received on one system is opened on another.
func checkName(name string) error {
	switch {
	case name == "":
		return errNameEmpty
	case name == "." || name == "..":
		return errNameDots
	case len(name) > maxName:
		return errNameLong
	case !utf8.ValidString(name):
		return errNameUTF8
	}
	for _, r := range name {
		switch {
		case !printable(r) || r == utf8.RuneError:
			return errNameControl
		case r == '/' || r == '\\':
			return errNameSlash
		case strings.ContainsRune(`<>:"|?*`, r):
			return errNameWindows
		}
	}
	switch {
	case name[len(name)-1] == '.' || name[len(name)-1] == ' ':
		return errNameEnd
	case isDevice(name):
		return errNameDevice
	case strings.HasPrefix(fold(name), journalPrefix):
		return errNameReserved
	}
	return nil
}

// isDevice is true for the names that Windows opens as devices in every
// folder, with any extension: CON, nul.txt, COM1, LPT² and the rest.
func isDevice(name string) bool {
	stem, _, _ := strings.Cut(name, ".")
	stem = strings.ToUpper(strings.TrimRight(stem, " "))
	switch stem {
	case "CON", "PRN", "AUX", "NUL", "CONIN$", "CONOUT$", "CLOCK$":
		return true
	}
	for _, port := range []string{"COM", "LPT"} {
		digit, ok := strings.CutPrefix(stem, port)
		if ok && utf8.RuneCountInString(digit) == 1 && strings.ContainsAny(digit, "0123456789¹²³") {
			return true
		}
	}
	return false
}

// fold makes names equal that some file system takes for the same: composition
// (NFC) and case. Two entries of one folder with equal folds would meet in one
// file on macOS and Windows.
func fold(name string) string {
	ascii := true
	for i := 0; i < len(name); i++ {
		if name[i] >= utf8.RuneSelf {
			ascii = false
			break
		}
	}
	if ascii {
		return strings.ToLower(name)
	}
	return norm.NFC.String(cases.Fold().String(norm.NFC.String(name)))
}

// numbered is the name that a file takes when n others have its name:
// "name (1).ext", cut so that it is no longer than a name may be.
func numbered(name string, n int) string {
	if n == 0 {
		return name
	}
	ext := ""
	if i := strings.LastIndexByte(name, '.'); i > 0 && len(name)-i <= 16 {
		name, ext = name[:i], name[i:]
		// "archive.tar.gz" is "archive (1).tar.gz".
		if rest, ok := strings.CutSuffix(name, ".tar"); ok && rest != "" {
			name, ext = rest, ".tar"+ext
		}
	}
	tail := fmt.Sprintf(" (%d)%s", n, ext)
	return shorten(name, maxName-len(tail)) + tail
}

// partName is the n-th name under which an incomplete file may lie. The first
// is NAME.part; the others are for when that one belongs to somebody else.
func partName(name string, n int) string {
	tail := partSuffix
	if n > 0 {
		tail = fmt.Sprintf(".%d%s", n, partSuffix)
	}
	return shorten(name, maxName-len(tail)) + tail
}

// shorten cuts s to at most n bytes, between two characters.
func shorten(s string, n int) string {
	if len(s) <= n {
		return s
	}
	for n > 0 && !utf8.RuneStart(s[n]) {
		n--
	}
	return s[:n]
}

// Errors of links (Section 6 of transfer.md).
var (
	errTargetEmpty    = errors.New("a link to nowhere")
	errTargetLong     = fmt.Errorf("a link whose target is longer than %d bytes", maxTarget)
	errTargetAbsolute = errors.New("a link to an absolute place")
	errTargetOut      = errors.New("a link that leads out of its folder")
	errTargetTop      = errors.New("a link that lies in no folder")
)

// checkTarget says whether a link may lead to target. depth is the number of
// folders of the transfer that the link lies in: that many times it may go up,
// less one, so that it stays in the folder at the top.
//
// Going up is allowed at the front only. "a/../x" means two things, depending
// on whether a is a link: in the folder that holds a, or wherever a leads. With
// every ".." at the front it starts from the folder of the link, which is a real
// one, and no chain of such links can leave the top.
func checkTarget(target string, depth int) error {
	switch {
	case target == "":
		return errTargetEmpty
	case len(target) > maxTarget:
		return errTargetLong
	case depth < 1:
		return errTargetTop
	case target[0] == '/' || target[0] == '\\':
		return errTargetAbsolute
	}
	up, front := 0, true
	for part := range strings.SplitSeq(target, "/") {
		switch part {
		case "", ".":
		case "..":
			up++
			if !front || up >= depth {
				return errTargetOut
			}
		default:
			front = false
			// A backslash or a drive letter would make it absolute on Windows.
			if err := checkName(part); err != nil {
				return fmt.Errorf("a link through %w", err)
			}
		}
	}
	return nil
}
