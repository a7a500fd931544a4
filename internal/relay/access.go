package relay

// Access says who may have a lease.
type Access struct{}
