package audit

import "skerry.dev/skerry/internal/audittrail"

// Record is an entry as the trail keeps it: with its place in the team's chain.
type Record = audittrail.Record

// Hash links an entry to all before it. The zero Hash stands before the first.
type Hash = audittrail.Hash
