package app

import (
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	dto "github.com/prometheus/client_model/go"

	"skerry.dev/skerry/internal/control/sandbox"
	"skerry.dev/skerry/internal/kernel/observe"
	"skerry.dev/skerry/internal/pg/pgtest"
	"skerry.dev/skerry/internal/telemetry/telemetrytest"
)

// TestO4_FiguresWithoutADatabase: metrics are answered all the same, and say so.
func TestO4_FiguresWithoutADatabase(t *testing.T) {
	pool := pgtest.New(t)
	f := newFigures(pool)
	registry := prometheus.NewPedanticRegistry()
	registry.MustRegister(f)
	gather := func() map[string]*dto.MetricFamily {
		t.Helper()
		list, err := registry.Gather()
		if err != nil {
			t.Fatal(err)
		}
		families := map[string]*dto.MetricFamily{}
		for _, family := range list {
			families[family.GetName()] = family
		}
		telemetrytest.Check(t, families)
		return families
	}
	there := gather()
	for name, labels := range map[string][]string{
		"skerry_sandboxes": {"status=running"}, "skerry_hosts": {"status=online"}, "skerry_operations_open": {"kind=fork"},
	} {
		if n, err := telemetrytest.Value(there, name, labels...); err != nil || n != 0 {
			t.Errorf("%s of an empty database is %v, %v", name, n, err)
		}
	}
	if up, err := telemetrytest.Value(there, "skerry_database_up"); err != nil || up != 1 {
		t.Errorf("the database is up: %v, %v", up, err)
	}

	pool.Close()
	began := time.Now()
	if up, _ := telemetrytest.Value(gather(), "skerry_database_up"); up != 1 {
		t.Error("the database was asked again within its time")
	}
	f.at = time.Time{}
	gone := gather()
	if up, err := telemetrytest.Value(gone, "skerry_database_up"); err != nil || up != 0 {
		t.Errorf("the database that is gone is up: %v, %v", up, err)
	}
	if gone["skerry_sandboxes"] != nil {
		t.Error("sandboxes were counted where nobody could count them")
	}
	if took := time.Since(began); took > 2*countWithin {
		t.Errorf("it took %s", took)
	}
}

type moves struct {
	observe.Nobody
	told []string
	took []time.Duration
}

func (m *moves) Moved(machine, state string, after time.Duration) {
	m.told, m.took = append(m.told, machine+" "+state), append(m.took, after)
}

// TestO4_StepsTellTheirTime: since the operation was opened, by whatever clock.
func TestO4_StepsTellTheirTime(t *testing.T) {
	m := &moves{}
	tell := steps(m)
	for _, at := range []time.Time{{}, time.Now().Add(-time.Minute), time.Now().Add(time.Minute)} {
		if err := tell(sandbox.StepCreateRunning, sandbox.Operation{Kind: sandbox.KindCreate, CreatedAt: at}); err != nil {
			t.Error(err)
		}
	}
	if len(m.told) != 3 || m.told[0] != "create create_running" || m.took[0] >= 0 || m.took[1] < time.Minute || m.took[2] != 0 {
		t.Errorf("told of %v after %v", m.told, m.took)
	}
}
