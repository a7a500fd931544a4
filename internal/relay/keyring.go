package relay

// Keyring holds the master keys of leases.
type Keyring struct{}
