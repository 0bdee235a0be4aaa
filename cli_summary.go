package main

import (
	"encoding/json"
	"fmt"
	"slices"
	"strings"

	"app/internal/terminal"
)

// printSummary prints a summary as bars, and the days as sparklines.
func printSummary(w *terminal.Table, s Summary) error {
	groups := []struct {
		title  string
		counts map[string]int64
	}{{"STATUS", s.Items.ByStatus}, {"LEVEL", s.Items.ByLevel}, {"ENVIRONMENT", s.Items.ByEnvironment}}
	bar, most := 40, len(s.Days)
	if w.Width > 0 { // the bars get what the first two columns leave
		first := len("SINCE 2006-01-02")
		for _, group := range groups {
			for name := range group.counts {
				first = max(first, terminal.TextWidth(terminal.Printable(name)))
			}
		}
		most = max(1, w.Width-first-len("  OCCURRENCES  "))
		bar = min(bar, most)
	}
	for _, group := range groups {
		fmt.Fprintf(w, "%s\tITEMS\t\n", group.title)
		for _, name := range byCount(group.counts) {
			count := group.counts[name]
			fmt.Fprintf(w, "%s\t%d\t%s\n", terminal.Printable(name), count, strings.Repeat("█", int(count*int64(bar)/max(1, s.Items.Total))))
		}
		fmt.Fprintf(w, "\t\t\n")
	}
	days := s.Days[max(0, len(s.Days)-most):] // the latest
	added := column(days, func(day DayCounts) int64 { return day.New })
	changed := column(days, func(day DayCounts) int64 { return day.Changed })
	fmt.Fprintf(w, "SINCE %s\tMOST A DAY\t\n", days[0].Date)
	fmt.Fprintf(w, "new items\t%d\t%s\n", slices.Max(added), terminal.Sparkline(added))
	fmt.Fprintf(w, "changed\t%d\t%s\n\t\t\n", slices.Max(changed), terminal.Sparkline(changed))
	fmt.Fprintf(w, "TOP ITEMS\tOCCURRENCES\t\n")
	for _, item := range s.Top {
		title, _ := json.Marshal(item.Title) // for cell
		fmt.Fprintf(w, "%d\t%d\t%s %s %s\n", item.ItemID, item.TotalOccurrences, item.Level, item.Status, cell(w, "title", title, false))
	}
	fmt.Fprintf(w, "\t\t\nQUEUE\t%d\t%d rejected\n", s.Queue.Queued, s.Queue.Rejected)
	return w.Flush()
}
