package e2b

import (
	"fmt"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"

	"skerry.dev/skerry/internal/control/principal"
	"skerry.dev/skerry/internal/control/sandbox"
	"skerry.dev/skerry/internal/kernel/errs"
	"skerry.dev/skerry/internal/kernel/page"
)

const (
	headerNext = "X-Next-Token"
	// mostItems is what a page may have, and has when nothing is said.
	mostItems = 100
	// mostRunning bounds the list that has no pages.
	mostRunning = 1000
)

// list pages through the team's sandboxes, newest first unless asked otherwise.
func (f *Facade) list(w http.ResponseWriter, r *http.Request) error {
	q := r.URL.Query()
	p, err := pageOf(q)
	if err != nil {
		return err
	}
	filter := sandbox.Filter{OldestFirst: q.Get("order") == "asc", Template: strings.TrimSuffix(q.Get("template"), ":default")}
	if order := q.Get("order"); order != "" && order != "asc" && order != "desc" {
		return errs.Field("order", "order must be asc or desc.")
	}
	if strings.Contains(filter.Template, ":") {
		return errs.Field("template", "template must be a name or an id, without a tag.")
	}
	if filter.Statuses, err = statusesOf(q["state"]); err != nil {
		return err
	}
	if filter.Metadata, err = metadataOf(q.Get("metadata")); err != nil {
		return err
	}
	if s := q.Get("startedAfter"); s != "" {
		if filter.Since, err = time.Parse(time.RFC3339Nano, s); err != nil {
			return errs.Field("startedAfter", "startedAfter must be a time like 2006-01-02T15:04:05.000Z.").Because(err)
		}
	}
	got, err := f.Sandboxes.List(r.Context(), principal.From(r.Context()), filter, p)
	if err != nil {
		return err
	}
	if got.NextCursor != "" {
		w.Header().Set(headerNext, got.NextCursor)
	}
	return answered(w, http.StatusOK, itemsOf(got.Items))
}

func itemsOf(list []sandbox.Sandbox) []detail {
	items := make([]detail, len(list))
	for i, x := range list {
		items[i] = itemOf(x)
	}
	return items
}

// listRunning is the list of old, of what runs, in one piece.
func (f *Facade) listRunning(w http.ResponseWriter, r *http.Request) error {
	metadata, err := metadataOf(r.URL.Query().Get("metadata"))
	if err != nil {
		return err
	}
	filter := sandbox.Filter{Statuses: running(), Metadata: metadata}
	items := []detail{}
	for p := (page.Request{Limit: page.MaxLimit}); len(items) < mostRunning; {
		got, err := f.Sandboxes.List(r.Context(), principal.From(r.Context()), filter, p)
		if err != nil {
			return err
		}
		items = append(items, itemsOf(got.Items)...)
		if got.NextCursor == "" {
			break
		}
		p.Cursor = got.NextCursor
	}
	return answered(w, http.StatusOK, items)
}

func pageOf(q url.Values) (page.Request, error) {
	p := page.Request{Limit: mostItems, Cursor: q.Get("nextToken")}
	if s := q.Get("limit"); s != "" {
		n, err := strconv.Atoi(s)
		if err != nil || n < 1 || n > mostItems {
			return p, errs.Field("limit", fmt.Sprintf("limit must be between 1 and %d.", mostItems))
		}
		p.Limit = n
	}
	return p, nil
}

// running are the statuses that are all one to the protocol.
func running() []sandbox.Status {
	return slices.DeleteFunc(sandbox.LiveStatuses(), func(s sandbox.Status) bool { return !present(s) || s == sandbox.StatusPaused })
}

// statusesOf reads states, each a comma-separated list; none are all.
func statusesOf(lists []string) ([]sandbox.Status, error) {
	var out []sandbox.Status
	for word := range strings.SplitSeq(strings.Join(lists, ","), ",") {
		switch strings.TrimSpace(word) {
		case "":
		case stateRunning:
			out = append(out, running()...)
		case statePaused:
			out = append(out, sandbox.StatusPaused)
		default:
			return nil, errs.Field("state", "state must be running, paused or both.")
		}
	}
	if len(out) == 0 {
		out = append(running(), sandbox.StatusPaused)
	}
	return out, nil
}

// metadataOf reads a filter, which clients encode once more than a query: as a
// form of names and values that are encoded themselves.
func metadataOf(s string) (map[string]string, error) {
	form, err := url.QueryUnescape(s)
	if err != nil {
		return nil, errMetadata.Because(err)
	}
	out := map[string]string{}
	for pair := range strings.SplitSeq(form, "&") {
		if pair == "" {
			continue
		}
		name, text, ok := strings.Cut(pair, "=")
		if !ok {
			return nil, errMetadata
		}
		k, err := url.QueryUnescape(name)
		if err != nil {
			return nil, errMetadata.Because(err)
		}
		v, err := url.QueryUnescape(text)
		if err != nil || !utf8.ValidString(k+v) || strings.ContainsRune(k+v, 0) {
			return nil, errMetadata.Because(err)
		}
		out[k] = v
	}
	return out, nil
}

var errMetadata = errs.Field("metadata", "metadata must be names and values, encoded as a form is.")
