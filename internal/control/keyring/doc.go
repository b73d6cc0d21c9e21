// Package keyring holds the platform's keys: it seals secrets at rest, derives
// tokens that must be repeatable, signs and verifies the tokens of users and
// hosts, and is the certificate authority of the connections between the
// programs. Private keys leave the process only sealed under SKERRY_SECRET.
//
// It decides nothing: whether a session or a host still lives is the business
// of their rooms, on every request.
package keyring
