// Package spelling finds the name that a misspelt one probably stands for.
package spelling

import "strings"

// Nearest returns the valid name that differs least from the given one, or "" if all differ too much.
func Nearest(name string, names []string) string { return nearest(name, names, max(1, len(name)/2)) }

// Slip returns the valid name that differs from the given one by at most case and one slip, or "".
func Slip(name string, names []string) string { return nearest(name, names, 1) }

// nearest returns the name with the smallest edit distance, or "" if none is within the limit.
func nearest(name string, names []string, most int) (near string) {
	name = strings.ToLower(name[:min(len(name), 64)]) // the beginning of a very long name is enough
	for _, n := range names {
		if difference := len(name) - len(n); max(difference, -difference) > most {
			continue // spares most of the work
		}
		if distance := editDistance(name, n); distance <= most {
			near, most = n, distance-1
		}
	}
	return near
}

// editDistance returns the number of insertions, deletions, replacements and swaps of neighbours that turn a into b.
func editDistance(a, b string) int {
	rows := make([][]int, len(a)+1)
	for i := range rows {
		rows[i] = make([]int, len(b)+1)
		for j := range rows[i] {
			switch {
			case i == 0 || j == 0:
				rows[i][j] = i + j
			case a[i-1] == b[j-1]:
				rows[i][j] = rows[i-1][j-1]
			default:
				rows[i][j] = min(rows[i-1][j], rows[i][j-1], rows[i-1][j-1]) + 1
			}
			if i > 1 && j > 1 && a[i-1] == b[j-2] && a[i-2] == b[j-1] {
				rows[i][j] = min(rows[i][j], rows[i-2][j-2]+1)
			}
		}
	}
	return rows[len(a)][len(b)]
}
