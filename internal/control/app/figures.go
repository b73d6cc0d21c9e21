package app

import (
	"context"
	"sync"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/prometheus/client_golang/prometheus"

	"skerry.dev/skerry/internal/control/host"
	"skerry.dev/skerry/internal/control/sandbox"
)

const (
	// countWithin bounds the look at the database for one fetch of metrics,
	// countEvery how often there is one, whoever fetches.
	countWithin = 3 * time.Second
	countEvery  = 5 * time.Second
)

// countAll reads what indexes of living rows can tell; ended sandboxes, of which
// there may be millions, are not counted.
const countAll = `
SELECT 'sandbox' AS what, status AS of, count(*)::float8 AS n FROM sandboxes WHERE ended_at IS NULL GROUP BY status
UNION ALL SELECT 'host', status, count(*)::float8 FROM hosts WHERE deleted_at IS NULL GROUP BY status
UNION ALL SELECT 'warm', 'wanted', coalesce(sum(wanted), 0)::float8 FROM host_warm
UNION ALL SELECT 'warm', 'ready', coalesce(sum(there), 0)::float8 FROM host_warm
UNION ALL SELECT 'operation', kind, count(*)::float8 FROM operations WHERE status = 'open' GROUP BY kind
UNION ALL SELECT 'age', kind, greatest(extract(epoch FROM now() - min(created_at)), 0)::float8 FROM operations WHERE status = 'open' GROUP BY kind`

// figures are what metrics tell of the database and the pool of connections to
// it. What is counted in the database is the installation's, the same at each of
// its servers.
type figures struct {
	pool *pgxpool.Pool

	mu     sync.Mutex
	at     time.Time
	counts map[[2]string]float64 // what, of; nil while the database does not answer

	sandboxes, hosts, warm, open, oldest, up                       *prometheus.Desc
	connections, connectionsMax, acquires, waited, gaveUp, waiting *prometheus.Desc
}

func newFigures(pool *pgxpool.Pool) *figures {
	d := func(name, help string, labels ...string) *prometheus.Desc {
		return prometheus.NewDesc("skerry_"+name, help, labels, nil)
	}
	return &figures{
		pool:      pool,
		sandboxes: d("sandboxes", "Living sandboxes of the installation, by status.", "status"),
		hosts:     d("hosts", "Hosts of the installation, by status.", "status"),
		warm:      d("warm_instances", "Instances that hosts keep for sandboxes that come: as many as are to be, and as many as there were when last heard.", "state"),
		open:      d("operations_open", "Operations of the installation that are not finished, by kind.", "kind"),
		oldest:    d("operations_oldest_seconds", "Age of the oldest operation that is not finished, by kind; 0 for none.", "kind"),
		up:        d("database_up", "1 when the database answered the last look, else 0."),

		connections:    d("db_pool_connections", "Connections to the database, by state.", "state"),
		connectionsMax: d("db_pool_connections_limit", "How many connections to the database there may be."),
		acquires:       d("db_pool_acquires_total", "Connections that were asked for and given."),
		waited:         d("db_pool_waited_acquires_total", "Connections that had to be waited for."),
		gaveUp:         d("db_pool_canceled_acquires_total", "Connections that were asked for and given up."),
		waiting:        d("db_pool_acquire_seconds_total", "Time spent waiting for connections."),
	}
}

// Describe implements prometheus.Collector.
func (f *figures) Describe(out chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{
		f.sandboxes, f.hosts, f.warm, f.open, f.oldest, f.up, f.connections, f.connectionsMax, f.acquires, f.waited, f.gaveUp, f.waiting,
	} {
		out <- d
	}
}

// Collect implements prometheus.Collector.
func (f *figures) Collect(out chan<- prometheus.Metric) {
	send := func(d *prometheus.Desc, kind prometheus.ValueType, v float64, labels ...string) {
		out <- prometheus.MustNewConstMetric(d, kind, v, labels...)
	}
	stat := f.pool.Stat()
	send(f.connections, prometheus.GaugeValue, float64(stat.IdleConns()), "idle")
	send(f.connections, prometheus.GaugeValue, float64(stat.AcquiredConns()), "used")
	send(f.connections, prometheus.GaugeValue, float64(stat.ConstructingConns()), "opening")
	send(f.connectionsMax, prometheus.GaugeValue, float64(stat.MaxConns()))
	send(f.acquires, prometheus.CounterValue, float64(stat.AcquireCount()))
	send(f.waited, prometheus.CounterValue, float64(stat.EmptyAcquireCount()))
	send(f.gaveUp, prometheus.CounterValue, float64(stat.CanceledAcquireCount()))
	send(f.waiting, prometheus.CounterValue, stat.AcquireDuration().Seconds())

	counts := f.count()
	if counts == nil {
		send(f.up, prometheus.GaugeValue, 0)
		return
	}
	send(f.up, prometheus.GaugeValue, 1)
	for _, s := range sandbox.LiveStatuses() {
		send(f.sandboxes, prometheus.GaugeValue, counts[[2]string{"sandbox", string(s)}], string(s))
	}
	for _, s := range []host.Status{host.StatusPending, host.StatusOnline, host.StatusUnreachable, host.StatusDraining} {
		send(f.hosts, prometheus.GaugeValue, counts[[2]string{"host", string(s)}], string(s))
	}
	for _, state := range []string{"wanted", "ready"} {
		send(f.warm, prometheus.GaugeValue, counts[[2]string{"warm", state}], state)
	}
	for _, k := range []sandbox.OperationKind{
		sandbox.KindCreate, sandbox.KindDelete, sandbox.KindPause, sandbox.KindResume, sandbox.KindSnapshot, sandbox.KindFork, sandbox.KindCheckpoint,
	} {
		send(f.open, prometheus.GaugeValue, counts[[2]string{"operation", string(k)}], string(k))
		send(f.oldest, prometheus.GaugeValue, counts[[2]string{"age", string(k)}], string(k))
	}
}

// count looks at the database unless it was looked at just now.
func (f *figures) count() map[[2]string]float64 {
	f.mu.Lock()
	defer f.mu.Unlock()
	if time.Since(f.at) < countEvery {
		return f.counts
	}
	// A collector is given no context; the look is bounded by itself.
	ctx, cancel := context.WithTimeout(context.Background(), countWithin)
	defer cancel()
	f.counts = nil
	rows, err := f.pool.Query(ctx, countAll)
	if err == nil {
		found := map[[2]string]float64{}
		var what, of string
		var n float64
		if _, err = pgx.ForEachRow(rows, []any{&what, &of, &n}, func() error {
			found[[2]string{what, of}] = n
			return nil
		}); err == nil {
			f.counts = found
		}
	}
	f.at = time.Now()
	return f.counts
}
