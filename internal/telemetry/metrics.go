package telemetry

import (
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// metrics are those that both programs have. Labels are constants of the code.
type metrics struct {
	build *prometheus.GaugeVec

	loopRuns, loopFailures *prometheus.CounterVec
	loopTook               *prometheus.HistogramVec
	loopSuccess            *prometheus.GaugeVec

	moves *prometheus.CounterVec
	moved *prometheus.HistogramVec

	calls  *prometheus.CounterVec
	called *prometheus.HistogramVec

	requests *prometheus.CounterVec
	answered *prometheus.HistogramVec

	spans    prometheus.Counter
	exported *prometheus.CounterVec
}

// buckets, in seconds, from what memory answers to what a host does.
func buckets() []float64 {
	return []float64{.001, .005, .01, .025, .05, .1, .25, .5, 1, 2.5, 5, 10, 30, 60, 300}
}

func newMetrics(r prometheus.Registerer) *metrics {
	count := func(name, help string, labels ...string) *prometheus.CounterVec {
		v := prometheus.NewCounterVec(prometheus.CounterOpts{Name: name, Help: help}, labels)
		r.MustRegister(v)
		return v
	}
	gauge := func(name, help string, labels ...string) *prometheus.GaugeVec {
		v := prometheus.NewGaugeVec(prometheus.GaugeOpts{Name: name, Help: help}, labels)
		r.MustRegister(v)
		return v
	}
	seconds := func(name, help string, labels ...string) *prometheus.HistogramVec {
		v := prometheus.NewHistogramVec(prometheus.HistogramOpts{Name: name, Help: help, Buckets: buckets()}, labels)
		r.MustRegister(v)
		return v
	}
	m := &metrics{
		build: gauge("skerry_build_info", "Always 1; the labels say which program and release this is.", "program", "version"),

		loopRuns:     count("skerry_loop_runs_total", "Turns of each background loop.", "loop"),
		loopFailures: count("skerry_loop_failures_total", "Turns of each background loop that failed.", "loop"),
		loopTook:     seconds("skerry_loop_duration_seconds", "How long a turn of each background loop took.", "loop"),
		loopSuccess:  gauge("skerry_loop_last_success_timestamp_seconds", "When a turn of each background loop last succeeded, in Unix time.", "loop"),

		moves: count("skerry_transitions_total", "How often a state machine reached a state.", "machine", "state"),
		moved: seconds("skerry_transition_seconds", "How long after its beginning a state machine reached a state.", "machine", "state"),

		calls:  count("skerry_calls_total", "Calls to a part of the program or the machine, by how they ended.", "part", "call", "result"),
		called: seconds("skerry_call_duration_seconds", "How long calls to a part of the program or the machine took.", "part", "call"),

		requests: count("skerry_api_requests_total", "Requests to the API by operation and HTTP status.", "operation", "status"),
		answered: seconds("skerry_api_request_duration_seconds", "How long requests to the API took, streams until their end.", "operation"),

		exported: count("skerry_trace_spans_exported_total", "Spans that were handed to the trace receiver, by how that ended.", "result"),
		spans:    prometheus.NewCounter(prometheus.CounterOpts{Name: "skerry_trace_spans_total", Help: "Spans that ended; what is not exported was dropped or waits."}),
	}
	r.MustRegister(m.spans)
	return m
}

func (m *metrics) round(loop string, took time.Duration, err error) {
	m.loopRuns.WithLabelValues(loop).Inc()
	m.loopTook.WithLabelValues(loop).Observe(took.Seconds())
	failures := m.loopFailures.WithLabelValues(loop) // there at 0 for alerts
	if err != nil {
		failures.Inc()
		return
	}
	m.loopSuccess.WithLabelValues(loop).SetToCurrentTime()
}
