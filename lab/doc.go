// Package lab runs the project against the real world's programs: XMPP servers
// (Prosody and ejabberd as Debian ships them), OpenSSH, git, and a peer that
// speaks XEP-0046 and nothing else, written in another language (folder stock).
//
// The package itself is the harness: it starts such programs on loopback, on
// free ports, with data folders inside the test's temporary folder, waits until
// they answer, keeps their logs in the test's output when the test fails, and
// ends them, with everything they started, when the test ends. Nothing outside
// the temporary folder is read or written, and no packet leaves the machine.
//
// For what depends on the network between two machines it makes an internet of
// network namespaces: hosts behind NATs and firewalls of every kind, with a
// delay between them ([NewWorld], [Places]). Its addresses look public; nothing
// of it is connected to the machine's own network.
//
// The tests that use it run only when they are asked for:
//
//	go test ./lab -lab -v          the stories, minutes
//	go test ./lab -lab -long -v    the same with soaks and long benchmarks
//
// They need Debian 12 and its packages; [Tools] lists them. A missing one is a
// failure that names the package, never a skipped test. Without -lab only the
// harness is checked, cheaply.
//
// The harness runs on Linux only: it watches processes through /proc and ties
// their lives to the test's.
package lab
