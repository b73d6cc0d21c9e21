package app

import (
	"io"
	"net/http"
	"slices"
	"sync"
	"testing"
	"time"
)

// BenchmarkGetSandbox is one authenticated read over HTTP, by eight callers at
// once: requests a second, and how long one takes.
func BenchmarkGetSandbox(b *testing.B) {
	g := newGround(b)
	const callers = 8
	keys := make([]string, callers) // each caller has a rate of its own
	for i := range keys {
		var made struct {
			Key string `json:"key"`
		}
		g.do(b, http.MethodPost, "/v1/api-keys", g.ann, map[string]string{"name": "bench"}, http.StatusCreated, &made)
		keys[i] = made.Key
	}
	client := &http.Client{Transport: &http.Transport{MaxIdleConnsPerHost: callers}}
	defer client.CloseIdleConnections()
	took := make([]time.Duration, b.N)
	next := make(chan int)
	var calling sync.WaitGroup
	b.ResetTimer()
	start := time.Now()
	for _, key := range keys {
		calling.Go(func() {
			for i := range next {
				began := time.Now()
				req, err := http.NewRequestWithContext(b.Context(), http.MethodGet, g.url+"/v1/sandboxes/"+g.annSandbox, nil)
				if err != nil {
					b.Error(err)
					return
				}
				req.Header.Set("X-API-Key", key)
				res, err := client.Do(req)
				if err != nil {
					b.Error(err)
					return
				}
				_, _ = io.Copy(io.Discard, res.Body)
				_ = res.Body.Close()
				if res.StatusCode == http.StatusTooManyRequests { // above what one caller may ask for
					b.Error("the rate limit was reached; the figures would be of refusals")
				}
				took[i] = time.Since(began)
			}
		})
	}
	for i := range b.N {
		next <- i
	}
	close(next)
	calling.Wait()
	elapsed := time.Since(start)
	b.StopTimer()
	slices.Sort(took)
	b.ReportMetric(float64(b.N)/elapsed.Seconds(), "requests/s")
	b.ReportMetric(float64(took[len(took)/2].Microseconds())/1000, "ms-median")
	b.ReportMetric(float64(took[len(took)*99/100].Microseconds())/1000, "ms-p99")
}
