package main

import (
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"go/types"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// layers are the rooms of the package, the highest first. The first word of a file's name is its room. A
// file may use the rooms in its own layer and below, and the common ground.
var layers = [][]string{
	{"main"},
	{"serve"},
	{"handlers", "response", "cli", "table", "openapi", "mcp", "pages", "relay", "webhooks"},
	{"items", "occurrences", "reports", "retention"},
	{"rollbar", "store", "telemetry"},
}

// commonGround are the rooms that all others may use: what an operation is, what can go wrong, and what
// operations work with.
var commonGround = []string{"app", "call", "commands", "config", "errors", "params"}

// The compiler keeps internal/ from using the service. This test keeps the layers within the service.
func TestLayers(t *testing.T) {
	t.Parallel()
	layerOf := map[string]int{}
	for i, rooms := range layers {
		for _, room := range rooms {
			layerOf[room] = i
		}
	}
	var upward []string
	for use := range usesAcrossFiles(t) {
		from, to := roomOf(use.from), roomOf(use.to)
		require.True(t, slices.Contains(commonGround, from) ||
			slices.Contains(slices.Collect(maps.Keys(layerOf)), from), "%s belongs to no room", use.from)
		if slices.Contains(commonGround, to) {
			continue
		}
		above, is := layerOf[from]
		if !is {
			above = len(layers) - 1 // common ground may use the lowest layer
		}
		if from == "app" {
			above = layerOf["reports"] // it wires the outbox
		}
		if layerOf[to] < above {
			upward = append(upward, fmt.Sprintf("%s uses %s of %s", use.from, use.name, use.to))
		}
	}
	slices.Sort(upward)
	assert.Empty(t, upward, "uses of a higher layer:\n%s", strings.Join(upward, "\n"))
}

func roomOf(file string) string {
	room, _, _ := strings.Cut(strings.TrimSuffix(file, ".go"), "_")
	return room
}

// A use is a name that one file uses and another one declares.
type use struct{ from, name, to string }

// usesAcrossFiles returns the uses of the package's functions, types, methods and fields outside of their
// own files, except in tests. Other packages are not loaded, so their types are unknown.
func usesAcrossFiles(t *testing.T) map[use]bool {
	t.Helper()
	names, err := filepath.Glob("*.go")
	require.NoError(t, err)
	fset := token.NewFileSet()
	var files []*ast.File
	for _, name := range names {
		if strings.HasSuffix(name, "_test.go") {
			continue
		}
		text, err := os.ReadFile(name)
		require.NoError(t, err)
		file, err := parser.ParseFile(fset, name, text, parser.SkipObjectResolution)
		require.NoError(t, err)
		files = append(files, file)
	}
	info := &types.Info{Uses: map[*ast.Ident]types.Object{}}
	config := types.Config{Error: func(error) {}, FakeImportC: true}
	pkg, _ := config.Check("main", fset, files, info) // the errors are about packages that are not loaded
	uses := map[use]bool{}
	for ident, object := range info.Uses {
		if object.Pkg() != pkg || object.Pos() == token.NoPos {
			continue
		}
		from, to := fset.Position(ident.Pos()).Filename, fset.Position(object.Pos()).Filename
		if from != to {
			uses[use{from, object.Name(), to}] = true
		}
	}
	require.Greater(t, len(uses), 100)
	return uses
}
