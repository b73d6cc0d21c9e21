package mem

import (
	"testing"

	"skerry.dev/skerry/internal/artifact"
	"skerry.dev/skerry/internal/artifact/artifacttest"
)

func TestStore(t *testing.T) {
	artifacttest.Run(t, func(*testing.T) artifact.Store { return &Store{} })
}
