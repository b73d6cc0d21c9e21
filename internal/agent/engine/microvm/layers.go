package microvm

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"time"
)

// mostLayers bounds how many images of directories are kept. Machines hold theirs
// open: what goes early is made again when the next one needs it.
const mostLayers = 32

// layerUUID is the same for all: an image is what is in it, so that a copy made on
// another host finds the bytes that its source had.
const layerUUID = "00000000-0000-0000-0000-000000000001"

// imagesOf are the layers as files: a directory, small and never written to
// again, is made into one.
func (e *Engine) imagesOf(ctx context.Context, layers []string) ([]string, []int64, error) {
	images, sizes := slices.Clone(layers), make([]int64, len(layers))
	for i, layer := range layers {
		st, err := os.Stat(layer)
		if err == nil && st.IsDir() {
			images[i], err = e.imageOf(ctx, layer)
			if err == nil {
				st, err = os.Stat(images[i])
			}
		}
		if err != nil {
			return nil, nil, fmt.Errorf("microvm: layer of the root tree: %w", err)
		}
		sizes[i] = st.Size()
	}
	return images, sizes, nil
}

// imageOf makes the image of a directory, or finds it.
func (e *Engine) imageOf(ctx context.Context, dir string) (string, error) {
	id, err := identify(dir)
	if err != nil {
		return "", err
	}
	sum := sha256.Sum256(fmt.Appendf(nil, "%s\n%s\n%+v", e.bootID, dir, id))
	image := filepath.Join(e.layersDir(), hex.EncodeToString(sum[:16])+layerSuffix)
	e.layers.Lock()
	defer e.layers.Unlock()
	now := time.Now()
	if err := os.Chtimes(image, now, now); err == nil {
		return image, nil
	}
	e.pruneLayers()
	tmp := image + newSuffix
	if err := os.Remove(tmp); err != nil && !errors.Is(err, os.ErrNotExist) {
		return "", err
	}
	cmd := exec.CommandContext(ctx, "mkfs.erofs", "-T0", "-U"+layerUUID, "--all-root", tmp, dir)
	if out, err := cmd.CombinedOutput(); err != nil {
		_ = os.Remove(tmp)
		return "", fmt.Errorf("mkfs.erofs (from erofs-utils): %w: %.300s", err, strings.TrimSpace(string(out)))
	}
	return image, os.Rename(tmp, image)
}

const (
	layerSuffix = ".erofs"
	newSuffix   = ".new"
)

func (e *Engine) layersDir() string { return filepath.Join(e.cfg.StateDir, "layers") }

// pruneLayers makes room for one more.
func (e *Engine) pruneLayers() {
	type file struct {
		path string
		used time.Time
	}
	var kept []file
	entries, _ := os.ReadDir(e.layersDir())
	for _, entry := range entries {
		path := filepath.Join(e.layersDir(), entry.Name())
		if info, err := entry.Info(); err != nil || strings.HasSuffix(path, newSuffix) {
			_ = os.Remove(path)
		} else {
			kept = append(kept, file{path, info.ModTime()})
		}
	}
	slices.SortFunc(kept, func(a, b file) int { return b.used.Compare(a.used) })
	for i, f := range kept {
		if i >= mostLayers-1 {
			_ = os.Remove(f.path)
		}
	}
}
