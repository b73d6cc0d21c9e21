package web

import (
	"encoding/json"
	"fmt"
	"slices"
	"strings"

	"gopkg.in/yaml.v3"

	"skerry.dev/skerry/api"
)

// documentAsJSON is the published document in the form that a page can read
// without a parser.
func documentAsJSON() ([]byte, error) {
	var document any
	if err := yaml.Unmarshal(api.OpenAPI, &document); err != nil {
		return nil, fmt.Errorf("read the API's document: %w", err)
	}
	raw, err := json.Marshal(document)
	if err != nil {
		return nil, fmt.Errorf("write the API's document: %w", err)
	}
	return raw, nil
}

// Routes lists what was mounted.
func (s *Server) Routes() []Route { return slices.Clone(s.routes) }

// RouteFaults compares the mounted routes with those that the document marks
// as standing beside the generated ones, and names each that is on one side
// only. Nothing is the right answer once everything is mounted.
func (s *Server) RouteFaults() []string {
	var document struct {
		Paths map[string]map[string]struct {
			OperationID string `yaml:"operationId"`
			Raw         bool   `yaml:"x-skerry-raw"`
		}
	}
	if err := yaml.Unmarshal(api.OpenAPI, &document); err != nil {
		return []string{"the document cannot be read: " + err.Error()}
	}
	described := map[string]bool{}
	for path, item := range document.Paths {
		for method, operation := range item {
			if operation.Raw {
				described[routeName(strings.ToUpper(method), path, operation.OperationID)] = true
			}
		}
	}
	var faults []string
	for _, route := range s.routes {
		name := routeName(route.Method, route.Path, route.Operation)
		if !described[name] {
			faults = append(faults, name+" is mounted and not in the document")
		}
		delete(described, name)
	}
	for name := range described {
		faults = append(faults, name+" is in the document and not mounted")
	}
	slices.Sort(faults)
	return faults
}

func routeName(method, path, operation string) string {
	return fmt.Sprintf("%s %s (%s)", method, path, operation)
}
