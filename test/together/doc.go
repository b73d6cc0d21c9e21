// Package together has the control plane's rooms and a real agent meet in one
// process: everything between a request and the engine is the product's own, the
// machine is simulated. What the two sides each prove against stand-ins of the
// other is proved here against the other.
package together
