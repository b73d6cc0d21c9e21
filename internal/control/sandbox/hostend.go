package sandbox

// EndHostDeleted is why a sandbox ended whose host was deleted.
const EndHostDeleted = "host_deleted"

// LostWithHost is what people are told of what went with a deleted host.
const LostWithHost = "The host was deleted, and what it held is lost with it."
