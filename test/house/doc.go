// Package house checks the rules of the house: which way imports go, how long
// files get, that generated code fits its sources, and that every promise in
// docs/requirements.md names tests that exist.
package house
