package datadog

import (
	"runtime"
	"runtime/debug"
	"runtime/metrics"
	"time"
)

// runtimeGauges are the gauges of Datadog's dashboard for Go. The value of each is the sum of the metrics of
// package runtime/metrics. Unlike runtime.ReadMemStats, reading them does not stop the world.
var runtimeGauges = []struct {
	name    string
	sources []string
}{
	{"runtime.go.num_goroutine", []string{"/sched/goroutines:goroutines"}},
	{"runtime.go.num_cgo_call", []string{"/cgo/go-to-c-calls:calls"}},
	{"runtime.go.mem_stats.alloc", []string{"/memory/classes/heap/objects:bytes"}},
	{"runtime.go.mem_stats.total_alloc", []string{"/gc/heap/allocs:bytes"}},
	{"runtime.go.mem_stats.mallocs", []string{"/gc/heap/allocs:objects", "/gc/heap/tiny/allocs:objects"}},
	{"runtime.go.mem_stats.frees", []string{"/gc/heap/frees:objects", "/gc/heap/tiny/allocs:objects"}},
	{"runtime.go.mem_stats.sys", []string{"/memory/classes/total:bytes"}},
	{"runtime.go.mem_stats.heap_alloc", []string{"/memory/classes/heap/objects:bytes"}},
	{"runtime.go.mem_stats.heap_objects", []string{"/gc/heap/objects:objects"}},
	{"runtime.go.mem_stats.heap_inuse", []string{"/memory/classes/heap/objects:bytes", "/memory/classes/heap/unused:bytes"}},
	{"runtime.go.mem_stats.heap_idle", []string{"/memory/classes/heap/free:bytes", "/memory/classes/heap/released:bytes"}},
	{"runtime.go.mem_stats.heap_released", []string{"/memory/classes/heap/released:bytes"}},
	{"runtime.go.mem_stats.stack_inuse", []string{"/memory/classes/heap/stacks:bytes"}},
	{"runtime.go.mem_stats.next_gc", []string{"/gc/heap/goal:bytes"}},
	{"runtime.go.mem_stats.num_gc", []string{"/gc/cycles/total:gc-cycles"}},
}

// ObserveRuntime sets the gauges of the Go runtime.
func (c *Client) ObserveRuntime() {
	tags := []string{"runtime-id:" + runtimeID, "lang:go", "lang_version:" + goVersion}
	c.Gauge("runtime.go.num_cpu", float64(runtime.NumCPU()), tags...)
	for _, g := range runtimeGauges {
		var sum uint64
		for _, source := range g.sources {
			sample := []metrics.Sample{{Name: source}}
			metrics.Read(sample)
			if sample[0].Value.Kind() == metrics.KindUint64 { // other releases of Go may lack the metric
				sum += sample[0].Value.Uint64()
			}
		}
		c.Gauge(g.name, float64(sum), tags...)
	}
	pauses := debug.GCStats{PauseQuantiles: make([]time.Duration, 5)}
	debug.ReadGCStats(&pauses)
	for i, quantile := range []string{"min", "25p", "50p", "75p", "max"} {
		c.Gauge("runtime.go.gc_stats.pause_quantiles."+quantile, float64(pauses.PauseQuantiles[i]), tags...)
	}
}
