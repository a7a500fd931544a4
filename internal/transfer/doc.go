// Package transfer sends files and folders over any reliable stream of bytes
// and receives them: service "file" of dtcp, whose wire protocol is
// doc/transfer.md ("Section 4 of transfer.md" in comments). It knows nothing
// of addresses, XMPP or paths of the network: who is at the other end is for
// the caller to have proven.
//
// # Sending
//
//	sender := &transfer.Sender{
//		Dial: func(ctx context.Context) (io.ReadWriteCloser, error) { … },
//		Retry: 10 * time.Minute,
//	}
//	result, err := sender.Send(ctx, transfer.Path("holiday", true))
//
// Dial is called once per attempt. [Path] is a file or a folder, [Stream] an
// open pipe of unknown length, [Blob] anything else that can be opened again.
//
// # Receiving
//
//	folder, err := transfer.OpenFolder("Downloads")    // once, for all streams
//	receiver := &transfer.Receiver{Folder: folder, From: "romeo@example.org", Accept: ask}
//	result, err := receiver.Receive(ctx, stream)       // once for each stream
//
// Accept sees what is offered before anything is written; it may take as long
// as it likes, and whoever wants only so many transfers at once waits there,
// for the sender is told meanwhile that somebody is being asked.
//
// # What is promised
//
// A file lies as NAME.part until it is complete, its hash has been compared
// and its bytes are on the disk; then it is renamed. Bytes already there from
// an earlier attempt of the same sender, with the same name, size and time, are
// compared by hash and not sent again. A file that is already there whole is
// passed over; another file of its name is left alone, and the new one becomes
// "name (1).ext". Neither end can be made to hang: an end without progress for
// 30 seconds ends the transfer with [ErrStalled].
//
// # Security
//
// The other end is taken to be hostile. Every frame has a limit, and so have
// the number, depth and names of what is offered ([Limits]). A receiver writes
// through an [os.Root]; names that mean something to some system (see
// Section 6 of transfer.md) are refused one by one, links are made when nothing
// is written any more, and never lead out of their folder. A sender follows no
// link inside a folder. What the other end says is shortened and freed of
// control characters before it becomes part of an error; the names in [Offer]
// and [File] are valid UTF-8 without control characters, on either side.
//
// # Limits
//
// Times are kept to the nanosecond where the file system does; modes are the
// nine permission bits. Owners, extended attributes and holes are not kept;
// hard links become copies; fifos, sockets and devices are left out, and
// reported. A [Stream] cannot be resumed. Each end keeps its list of entries in
// memory, about 100 bytes each, and less than 16 MiB of buffers.
package transfer
