// Package api carries the published OpenAPI document.
package api

import _ "embed"

// OpenAPI is the document as served at /openapi.yaml.
//
//go:embed openapi.yaml
var OpenAPI []byte
