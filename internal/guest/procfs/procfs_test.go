package procfs

import (
	"os"
	"os/exec"
	"testing"

	"skerry.dev/skerry/internal/testkit"
)

func TestStatOfAProcessWithAHostileName(t *testing.T) {
	line := "42 (a) R 1 (\n) S 7 42 42 0 -1 0 0 0 0 0 3 4 0 0 20 0 1 0 99 1000 25 0"
	p, ok := parseStat([]byte(line))
	if !ok || p.PID != 42 || p.PPID != 7 || p.Session != 42 || p.Start != 99 || p.CPU != 7 || p.RSS != 25*uint64(os.Getpagesize()) {
		t.Errorf("got %+v, %v", p, ok)
	}
}

func TestReadsItself(t *testing.T) {
	p, ok := Read(os.Getpid())
	if !ok || p.PPID != os.Getppid() || p.RSS == 0 || p.Dead() {
		t.Errorf("got %+v, %v", p, ok)
	}
	m, err := ReadMemory()
	if err != nil || m.Total == 0 || m.Available > m.Total {
		t.Errorf("got %+v, %v", m, err)
	}
}

func TestTreeFindsOneThatEscapedByItsMark(t *testing.T) {
	const mark = "SKERRY_EXEC_ID=tree-test"
	cmd := exec.Command("setsid", "-f", "sleep", "1000")
	cmd.Env = append(os.Environ(), mark)
	if err := cmd.Run(); err != nil {
		t.Fatal(err)
	}
	var family []Process
	testkit.Eventually(t, 5e9, "the escaped process is found", func() bool {
		var err error
		family, err = Tree(1<<30, mark, os.Getpid())
		return err == nil && len(family) == 1
	})
	p, err := os.FindProcess(family[0].PID)
	if err != nil {
		t.Fatal(err)
	}
	if err := p.Kill(); err != nil {
		t.Fatal(err)
	}
}

func FuzzParseStat(f *testing.F) {
	f.Add([]byte("1 (init) S 0 1 1 0 -1 0 0 0 0 0 0 0 0 0 20 0 1 0 3 4 5"))
	f.Fuzz(func(t *testing.T, data []byte) {
		if p, ok := parseStat(data); ok && p.PID <= 0 {
			t.Errorf("accepted %+v", p)
		}
		parseMemory(data)
	})
}
