package kit

import (
	"debug/elf"
	"fmt"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
)

// wanted are the modules a machine needs to find its network and its host, to
// put its root together, and to end a copy's connections. Those that are late are
// loaded when a machine starts its workload: one that was booted before, for any
// workload, must not have seen the disks of the first.
var (
	wanted = []string{"virtio_pci", "virtio_net", "virtio_console", "virtio_rng", "erofs", "overlay", "inet_diag", "tcp_diag"}
	late   = []string{"virtio_blk"}
)

// module is one file of the kernel's tree.
type module struct {
	name string // as the kernel says it, with underscores
	path string
}

func canonical(name string) string { return strings.ReplaceAll(name, "-", "_") }

// order lists the modules below dir that must be loaded for those wanted, each
// after all it depends on. Its beginning is the same whatever is wanted at the end. The package's tree has no list of dependencies before
// it is installed: each module tells its own. What is built in is left out.
func order(dir string, want []string) ([]module, error) {
	files := map[string]string{}
	err := filepath.WalkDir(dir, func(p string, d fs.DirEntry, err error) error {
		if err == nil && d.Type().IsRegular() && strings.HasSuffix(p, ".ko") {
			files[canonical(strings.TrimSuffix(d.Name(), ".ko"))] = p
		}
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("microvm: modules: %w", err)
	}
	builtIn := map[string]bool{}
	lists, _ := filepath.Glob(filepath.Join(dir, "*", "modules.builtin"))
	lists = append(lists, filepath.Join(dir, "modules.builtin"))
	for _, list := range lists {
		b, _ := os.ReadFile(list)
		for line := range strings.Lines(string(b)) {
			builtIn[canonical(strings.TrimSuffix(path.Base(strings.TrimSpace(line)), ".ko"))] = true
		}
	}
	var out []module
	state := map[string]int{} // 1 is being looked at, 2 is in the list
	var visit func(name string) error
	visit = func(name string) error {
		file, ok := files[name]
		switch {
		case state[name] == 2 || !ok && builtIn[name]:
			return nil
		case state[name] == 1:
			return fmt.Errorf("microvm: the module %s depends on itself", name)
		case !ok:
			return fmt.Errorf("microvm: the kernel has no module %s: choose another kernel", name)
		}
		state[name] = 1
		needs, err := depends(file)
		if err != nil {
			return err
		}
		for _, need := range needs {
			if err := visit(need); err != nil {
				return err
			}
		}
		state[name] = 2
		out = append(out, module{name: name, path: file})
		return nil
	}
	for _, name := range want {
		if err := visit(canonical(name)); err != nil {
			return nil, err
		}
	}
	return out, nil
}

// depends reads what a module says it needs.
func depends(file string) ([]string, error) {
	f, err := elf.Open(file)
	if err != nil {
		return nil, fmt.Errorf("microvm: module %s: %w", file, err)
	}
	defer f.Close()
	section := f.Section(".modinfo")
	if section == nil {
		return nil, fmt.Errorf("microvm: %s is no module", file)
	}
	b, err := section.Data()
	if err != nil {
		return nil, fmt.Errorf("microvm: module %s: %w", file, err)
	}
	for _, field := range strings.Split(string(b), "\x00") {
		if list, ok := strings.CutPrefix(field, "depends="); ok {
			names := slices.DeleteFunc(strings.Split(list, ","), func(s string) bool { return s == "" })
			for i := range names {
				names[i] = canonical(names[i])
			}
			return names, nil
		}
	}
	return nil, nil
}
