// cli_summary.go shows the summary of reports as bars.
package main

import (
	"cmp"
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strings"

	"app/internal/terminal"
)

// printSummary prints a summary as bars, and the days as lines of eighths.
func printSummary(w *terminal.Table, s Summary) error {
	for _, group := range []struct {
		title  string
		counts map[string]int64
	}{{"STATUS", s.Items.ByStatus}, {"LEVEL", s.Items.ByLevel}, {"ENVIRONMENT", s.Items.ByEnvironment}} {
		names := slices.SortedFunc(maps.Keys(group.counts), func(a, b string) int {
			return cmp.Or(cmp.Compare(group.counts[b], group.counts[a]), cmp.Compare(a, b))
		})
		fmt.Fprintf(w, "%s\tITEMS\t\n", group.title)
		for _, name := range names {
			count := group.counts[name]
			fmt.Fprintf(w, "%s\t%d\t%s\n", terminal.Printable(name), count, strings.Repeat("█", int(count*40/max(1, s.Items.Total))))
		}
		fmt.Fprintf(w, "\t\t\n")
	}
	days, most := s.Days, len(s.Days)
	if w.Width > 0 {
		most = max(1, w.Width-len("SINCE 2006-01-02  MOST A DAY  "))
	}
	days = days[max(0, len(days)-most):] // the latest
	var added, changed []int64
	for _, day := range days {
		added, changed = append(added, day.New), append(changed, day.Changed)
	}
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
