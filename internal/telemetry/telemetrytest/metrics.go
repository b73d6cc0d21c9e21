package telemetrytest

import (
	"bytes"
	"fmt"
	"io"
	"net/http"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/prometheus/client_golang/prometheus/testutil/promlint"
	dto "github.com/prometheus/client_model/go"
	"github.com/prometheus/common/expfmt"
	"github.com/prometheus/common/model"
)

// Scrape fetches and parses metrics, by name.
func Scrape(t testing.TB, url string) map[string]*dto.MetricFamily {
	t.Helper()
	res, err := http.Get(url) //nolint:noctx // the test's own
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	raw, err := io.ReadAll(io.LimitReader(res.Body, maxBatch))
	if err != nil || res.StatusCode != http.StatusOK {
		t.Fatalf("%s: %d %v\n%s", url, res.StatusCode, err, raw)
	}
	problems, err := promlint.New(bytes.NewReader(raw)).Lint()
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range problems {
		if strings.HasPrefix(p.Metric, "skerry_") {
			t.Errorf("%s: %s", p.Metric, p.Text)
		}
	}
	parser := expfmt.NewTextParser(model.UTF8Validation)
	families, err := parser.TextToMetricFamilies(bytes.NewReader(raw))
	if err != nil {
		t.Fatal(err)
	}
	return families
}

// allowed are the labels metrics may have. All their values are constants of the
// code, of the API's document, or HTTP's.
func allowed() []string {
	return []string{
		"program", "version", "loop", "machine", "state", "part", "call", "result", "operation", "status", "kind", "phase",
		"le", "quantile",
	}
}

// maxSeries bounds the series of one metric, its buckets not counted.
const maxSeries = 400

// Check looks at the form of our own metrics: what their names end in, that
// there is help, and that no label can hold an id or grow without bound.
func Check(t testing.TB, families map[string]*dto.MetricFamily) {
	t.Helper()
	// A UUID, as ours are in one piece, a long random word, an address, a path.
	id := regexp.MustCompile(`[0-9a-f]{8}-[0-9a-f]{4}|[0-9a-z]{20,}|\d+\.\d+\.\d+\.\d+|/`)
	for name, f := range families {
		if !strings.HasPrefix(name, "skerry_") {
			continue
		}
		if f.GetHelp() == "" {
			t.Errorf("%s says nothing of itself", name)
		}
		if counter := f.GetType() == dto.MetricType_COUNTER; counter != strings.HasSuffix(name, "_total") {
			t.Errorf("%s is a %s", name, f.GetType())
		}
		if f.GetType() == dto.MetricType_HISTOGRAM && !strings.HasSuffix(name, "_seconds") && !strings.HasSuffix(name, "_bytes") {
			t.Errorf("%s is a histogram without a unit", name)
		}
		if n := len(f.GetMetric()); n > maxSeries {
			t.Errorf("%s has %d series", name, n)
		}
		for _, m := range f.GetMetric() {
			for _, l := range m.GetLabel() {
				if !slices.Contains(allowed(), l.GetName()) {
					t.Errorf("%s has the label %s", name, l.GetName())
				}
				if l.GetName() != "version" && id.MatchString(l.GetValue()) {
					t.Errorf("%s{%s=%q} looks like an id", name, l.GetName(), l.GetValue())
				}
			}
		}
	}
}

// Value sums the series of a metric that have the given labels, as name=value. A
// histogram counts its observations. It fails when there is no such series.
func Value(families map[string]*dto.MetricFamily, name string, labels ...string) (float64, error) {
	f := families[name]
	if f == nil {
		return 0, fmt.Errorf("there is no %s", name)
	}
	sum, found := 0.0, false
	for _, m := range f.GetMetric() {
		have := map[string]bool{}
		for _, l := range m.GetLabel() {
			have[l.GetName()+"="+l.GetValue()] = true
		}
		if slices.ContainsFunc(labels, func(want string) bool { return !have[want] }) {
			continue
		}
		found = true
		sum += m.GetCounter().GetValue() + m.GetGauge().GetValue() + float64(m.GetHistogram().GetSampleCount())
	}
	if !found {
		return 0, fmt.Errorf("%s has no series with %v", name, labels)
	}
	return sum, nil
}
