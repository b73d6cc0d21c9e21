package e2e

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"skerry.dev/skerry/internal/testkit"
)

// builtRecipe leaves one of everything: what an image must carry over.
const builtRecipe = `FROM base
ENV GREETING="hello  world" TARGET=/srv/app
WORKDIR $TARGET
USER root
RUN mkdir /srv/gone /srv/dir && echo one > /srv/dir/one && touch /srv/gone/x /srv/dir/two && \
    # a comment amid it
    ln -s ../dir/one link && ln /srv/dir/one /srv/dir/hard && chmod 2755 /srv/dir
COPY --chown=user:user files/ files/
COPY top.txt renamed.txt
USER user
RUN echo "$GREETING" > mine.txt
USER root
RUN rm -r /srv/gone /srv/dir/two && chmod 4711 files/tool.sh
USER user
START python3 -m http.server 8000
READY python3 -c "import urllib.request; urllib.request.urlopen('http://localhost:8000')"
`

const builtFiles = `d 2755 root root /srv/dir
d 755 root root /srv
d 755 user user /srv/app
d 755 user user /srv/app/files
d 755 user user /srv/app/files/sub
f 4711 user user /srv/app/files/tool.sh
f 644 root root /srv/app/renamed.txt
f 644 root root /srv/dir/hard
f 644 root root /srv/dir/one
f 644 user user /srv/app/files/sub/deep.txt
f 644 user user /srv/app/mine.txt
l 777 root root /srv/app/link -> ../dir/one
l 777 user user /srv/app/files/way -> sub/deep.txt
`

// A directory and its recipe become a template, by the command line; what starts
// from it is what the recipe says, down to owners and permissions.
func TestP2_ARecipeBecomesATemplate(t *testing.T) {
	in := skerry(t)
	dir := t.TempDir()
	for name, text := range map[string]string{
		"Dockerfile": builtRecipe, "top.txt": "top", "files/tool.sh": "#!/bin/sh\necho tool\n", "files/sub/deep.txt": "deep", "files/skip.log": "no", ".dockerignore": "**/*.log\n",
	} {
		path := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
		if err := os.Chmod(path, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Symlink("sub/deep.txt", filepath.Join(dir, "files/way")); err != nil {
		t.Fatal(err)
	}
	build := func(args ...string) (string, error) {
		t.Helper()
		out, err := in.CLI(append([]string{"template", "build"}, args...)...).CombinedOutput()
		return string(out), err
	}
	said, err := build("made", dir)
	if err != nil {
		t.Fatalf("%v\n%s", err, said)
	}
	box := in.Create(t, map[string]any{"template": "made"})
	list := in.Sh(t, box.ID, `find /srv \( -type l -printf '%y %m %u %g %p -> %l\n' -o -printf '%y %m %u %g %p\n' \) | LC_ALL=C sort`)
	if diff := cmp.Diff(builtFiles, list.Stdout); diff != "" {
		t.Errorf("(-want +got)\n%s", diff)
	}
	if got := in.Sh(t, box.ID, `cat /srv/app/mine.txt /srv/app/files/way /srv/app/link; echo "$GREETING"; pwd; id -un`); got.Stdout != "hello  world\ndeepone\nhello  world\n/srv/app\nuser\n" {
		t.Errorf("inside: %q %q", got.Stdout, got.Stderr)
	}
	// It goes on from memory: the server that START began answers at once.
	if got := in.Sh(t, box.ID, `python3 -c "import urllib.request; print(urllib.request.urlopen('http://localhost:8000/renamed.txt').read().decode())"`); got.Stdout != "top\n" {
		t.Errorf("what START began: %q %q", got.Stdout, got.Stderr)
	}
	in.Must(t, "DELETE", "/v1/sandboxes/"+box.ID, nil, nil)

	// Again: no step runs, and the image is the same.
	var before, after struct {
		Digest string `json:"image_digest"`
		ID     string `json:"id"`
	}
	in.Must(t, "GET", "/v1/templates/made", nil, &before)
	if said, err = build("made", dir); err != nil || strings.Count(said, "kept from a former build") != 10 {
		t.Errorf("built again: %v\n%s", err, said)
	}
	in.Must(t, "GET", "/v1/templates/made", nil, &after)
	if after.ID == before.ID || after.Digest != before.Digest {
		t.Errorf("built again it is %+v, before it was %+v", after, before)
	}
	in.Must(t, "DELETE", "/v1/templates/made", nil, nil)

	bad := filepath.Join(dir, "Bad")
	if err := os.WriteFile(bad, []byte("FROM base\nRUN echo before\n\nRUN echo because >&2; exit 7\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	said, err = build("bad", "-f", bad, dir)
	if err == nil || !strings.Contains(said, "Line 4: `RUN echo because >&2; exit 7` ended with exit code 7") || !strings.Contains(said, "  because\n") {
		t.Errorf("a failing step: %v\n%s", err, said)
	}
	testkit.Eventually(t, 30*time.Second, "nothing of builds is left", func() bool { return len(in.traces(t)) == 0 })
}
