// Joinapi makes one OpenAPI document of the rooms' files: the complete one that
// the server publishes, and the one the REST generator reads, which leaves out
// the operations marked x-skerry-raw (WebSockets, uploads, pages) whose
// handlers stand beside the generated ones.
//
//	joinapi api/openapi api/openapi.yaml gen/restapi/openapi.yaml
package main

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"gopkg.in/yaml.v3"
)

func main() {
	if len(os.Args) != 4 {
		fmt.Fprintln(os.Stderr, "usage: joinapi <directory> <published document> <generator's document>")
		os.Exit(2)
	}
	if err := run(os.Args[1], os.Args[2], os.Args[3]); err != nil {
		fmt.Fprintln(os.Stderr, "joinapi:", err)
		os.Exit(1)
	}
}

func run(dir, published, generated string) error {
	files, err := filepath.Glob(filepath.Join(dir, "*.yaml"))
	if err != nil {
		return err
	}
	slices.Sort(files) // _head.yaml sorts first
	var document *yaml.Node
	for _, file := range files {
		raw, err := os.ReadFile(file)
		if err != nil {
			return err
		}
		var part yaml.Node
		if err := yaml.Unmarshal(raw, &part); err != nil {
			return fmt.Errorf("%s: %w", file, err)
		}
		if document == nil {
			document = part.Content[0]
			continue
		}
		if err := merge(document, part.Content[0]); err != nil {
			return fmt.Errorf("%s: %w", file, err)
		}
	}
	if err := write(published, document); err != nil {
		return err
	}
	dropRaw(document)
	schemas := find(find(document, "components"), "schemas")
	for i := 0; i < len(schemas.Content); i += 2 {
		if !strings.HasSuffix(schemas.Content[i].Value, "Request") {
			withMicroseconds(schemas.Content[i+1])
		}
	}
	return write(generated, document)
}

// withMicroseconds makes the generator write times with exactly six digits
// after the second. Requests are left alone: any RFC 3339 time is read.
func withMicroseconds(node *yaml.Node) {
	if node.Kind == yaml.MappingNode {
		if format := find(node, "format"); format != nil && format.Value == "date-time" {
			node.Content = append(node.Content,
				&yaml.Node{Kind: yaml.ScalarNode, Value: "x-ogen-time-format"},
				&yaml.Node{Kind: yaml.ScalarNode, Style: yaml.DoubleQuotedStyle, Value: "2006-01-02T15:04:05.000000Z07:00"})
			return
		}
	}
	for _, child := range node.Content {
		withMicroseconds(child)
	}
}

// merge adds src to dst, mapping by mapping; a key that both define with a
// value that is not a mapping is an error.
func merge(dst, src *yaml.Node) error {
	for i := 0; i < len(src.Content); i += 2 {
		key, value := src.Content[i], src.Content[i+1]
		at := find(dst, key.Value)
		switch {
		case at == nil:
			dst.Content = append(dst.Content, key, value)
		case at.Kind == yaml.MappingNode && value.Kind == yaml.MappingNode:
			if err := merge(at, value); err != nil {
				return fmt.Errorf("%s: %w", key.Value, err)
			}
		default:
			return fmt.Errorf("%s is defined twice (line %d)", key.Value, key.Line)
		}
	}
	return nil
}

func find(mapping *yaml.Node, key string) *yaml.Node {
	for i := 0; i < len(mapping.Content); i += 2 {
		if mapping.Content[i].Value == key {
			return mapping.Content[i+1]
		}
	}
	return nil
}

// dropRaw removes operations marked x-skerry-raw, and paths left without any.
func dropRaw(document *yaml.Node) {
	paths := find(document, "paths")
	paths.Content = filterPairs(paths.Content, func(item *yaml.Node) bool {
		item.Content = filterPairs(item.Content, func(operation *yaml.Node) bool {
			return operation.Kind != yaml.MappingNode || find(operation, "x-skerry-raw") == nil
		})
		return len(item.Content) > 0
	})
}

func filterPairs(pairs []*yaml.Node, keep func(value *yaml.Node) bool) []*yaml.Node {
	var kept []*yaml.Node
	for i := 0; i < len(pairs); i += 2 {
		if keep(pairs[i+1]) {
			kept = append(kept, pairs[i], pairs[i+1])
		}
	}
	return kept
}

func write(file string, document *yaml.Node) error {
	var out bytes.Buffer
	out.WriteString("# Joined from api/openapi by tools/joinapi. Do not edit.\n")
	encoder := yaml.NewEncoder(&out)
	encoder.SetIndent(2)
	if err := encoder.Encode(document); err != nil {
		return err
	}
	if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
		return err
	}
	return os.WriteFile(file, out.Bytes(), 0o644)
}
