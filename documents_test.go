package main

import (
	"encoding/json"
	"go/format"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"unicode/utf8"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

func TestReadmeIsShort(t *testing.T) {
	t.Parallel()
	assert.LessOrEqual(t, strings.Count(readDocument(t, "README.md"), "\n"), 130,
		"lines of README.md; move details to docs/")
}

// Lines of tests fit into 120 columns, with tabs counted as four.
func TestLinesOfTestsAreShort(t *testing.T) {
	t.Parallel()
	names, _ := filepath.Glob("*_test.go")
	more, _ := filepath.Glob("internal/*/*_test.go")
	for _, name := range append(names, more...) {
		for i, line := range strings.Split(readDocument(t, name), "\n") {
			width := utf8.RuneCountInString(strings.ReplaceAll(line, "\t", "    "))
			assert.LessOrEqual(t, width, 120, "columns of %s:%d", name, i+1)
		}
	}
}

// The README's example of an operation is formatted by gofmt and becomes a subcommand when it is added.
func TestReadmeExample(t *testing.T) {
	t.Parallel()
	_, code, _ := strings.Cut(readDocument(t, "README.md"), "\n```go\n")
	code, _, _ = strings.Cut(code, "```")
	formatted, err := format.Source([]byte(code))
	require.NoError(t, err)
	assert.Equal(t, code, string(formatted))

	here, err := os.Getwd()
	require.NoError(t, err)
	dir, overlay := t.TempDir(), map[string]map[string]string{"Replace": {}}
	list := strings.Replace(readDocument(t, "main.go"), "reportsSummaryCmd,", "reportsSummaryCmd, reportsCountCmd,", 1)
	for name, text := range map[string]string{"reports.go": readDocument(t, "reports.go") + code, "main.go": list} {
		overlay["Replace"][filepath.Join(here, name)] = filepath.Join(dir, name)
		require.NoError(t, os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600))
	}
	text, err := json.Marshal(overlay)
	require.NoError(t, err)
	require.NoError(t, os.WriteFile(filepath.Join(dir, "overlay.json"), text, 0o600))
	program := filepath.Join(dir, "app")
	out, err := exec.CommandContext(t.Context(), "go", "build", "-overlay", filepath.Join(dir, "overlay.json"),
		"-o", program, ".").CombinedOutput()
	require.NoError(t, err, "%s", out)
	out, err = exec.CommandContext(t.Context(), program, "reports", "count", "-h").CombinedOutput()
	require.NoError(t, err, "%s", out)
	assert.Contains(t, string(out), "GET /reports/count?level=")
}

// With .env.example as .env, the program outside of Compose uses the service in Compose.
func TestEnvExampleLeadsToCompose(t *testing.T) {
	config, err := loadConfig(nil, ".env.example")
	require.NoError(t, err)
	assert.Equal(t, "http://127.0.0.1:8080", config.AppURL)
	assert.Contains(t, readDocument(t, ".env.example"), "\nPORT=8080\n")
	assert.Contains(t, readDocument(t, "README.md"), "Authorization: Bearer "+config.apiTokens[0])
}

var (
	markdownLink = regexp.MustCompile(`\]\(([^)\s]+)\)`)
	goFile       = regexp.MustCompile("`([\\w./]+\\.go)`")
)

// Relative links lead to existing files, and the Go files that documents name exist.
func TestDocumentsNameExistingFiles(t *testing.T) {
	t.Parallel()
	documents, err := filepath.Glob("docs/*.md")
	require.NoError(t, err)
	for _, document := range append(documents, "README.md", "CHANGELOG.md", "CONTRIBUTING.md") {
		text := readDocument(t, document)
		for _, match := range markdownLink.FindAllStringSubmatch(text, -1) {
			target, _, _ := strings.Cut(match[1], "#")
			if target != "" && !strings.Contains(target, "://") {
				assert.FileExists(t, filepath.Join(filepath.Dir(document), target), "%s links to it", document)
			}
		}
		for _, match := range goFile.FindAllStringSubmatch(text, -1) {
			assert.FileExists(t, match[1], "%s names it", document)
		}
	}
}

func readDocument(t *testing.T, name string) string {
	t.Helper()
	text, err := os.ReadFile(name)
	require.NoError(t, err)
	return string(text)
}
