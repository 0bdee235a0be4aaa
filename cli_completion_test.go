package main

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// completedBy completes a line in a shell with our script for it, and returns the choices.
func completedBy(t *testing.T, shell, line string) []string {
	t.Helper()
	script := runShell(t, "", "completion", shell)
	require.Equal(t, 0, script.exit, script.err)
	path := filepath.Join(t.TempDir(), "script")
	require.NoError(t, os.WriteFile(path, []byte(script.out), 0o600))
	words := strings.Split(strings.ReplaceAll(line, "=", " = "), " ") // as bash does
	var cmd *exec.Cmd
	switch shell {
	case "bash":
		cmd = exec.Command("bash", append([]string{"-c", `source "$1"; shift; COMP_WORDS=("$@"); ` +
			`COMP_CWORD=$(($#-1)); _app; echo "${COMPREPLY[@]}"`, "bash", path}, words...)...)
	case "fish":
		cmd = exec.Command("fish", "--no-config", "-c",
			`source $argv[1]; complete -C $argv[2] | string replace -r '\t.*' '' | string join ' '; true`, path, line)
	}
	out, err := cmd.CombinedOutput()
	require.NoError(t, err, "%s", out)
	return strings.Fields(string(out))
}

// Each installed shell completes commands, flags and values.
func TestCompletion(t *testing.T) {
	t.Parallel()
	for _, shell := range []string{"bash", "fish"} {
		if _, err := exec.LookPath(shell); err != nil {
			t.Logf("%s is not installed: its script is not run", shell)
			continue
		}
		t.Run(shell, func(t *testing.T) {
			t.Parallel()
			for line, want := range map[string][]string{
				"app it": {"items"},
				"app items ": {"list", "get", "create", "update", "delete", "occurrences",
					"sync"},
				"app items up":                          {"update"},
				"app items list -sta":                   {"-status"},
				"app items list -status ":               {"active", "resolved", "muted", "archived"},
				"app items list -status muted -lev":     {"-level"},
				"app items list -level error -status a": {"active", "archived"},
				"app reports list -output nd":           {"ndjson"},
				"app serve -de":                         {"-dev"},
				"app m":                                 {"mcp"},
				"app mcp -app-u":                        {"-app-url"},
				"app completion b":                      {"bash"},
				"app items get -database-u":             {"-database-url"},
				"./app items list --sta":                {"--status"},
				"app items list --database-r":           {"--database-read-url"},
				"app items get -":                       {"-by", "-source", "-fields", "-as-curl", "-output", "-o"},
				"app serve -log-level w":                {"warn"},
			} {
				got := completedBy(t, shell, line)
				assert.Subset(t, got, want, line)
				if !strings.HasSuffix(line, " ") {
					assert.Len(t, got, len(want), line)
				}
			}
			if shell == "bash" {
				assert.Equal(t, []string{"critical"}, completedBy(t, shell, "app items list -level=c"))
				assert.Equal(t, []string{"debug", "info", "warning", "error", "critical"},
					completedBy(t, shell, "app items list --level "))
				assert.Equal(t, []string{"debug", "info", "warn", "error"}, completedBy(t, shell, "app -log-level "))
				assert.Empty(t, completedBy(t, shell, "app items create -data "), "bash completes files then")
				assert.Contains(t, completedBy(t, shell, "app items list -all "), "-level", "behind a switch")
			}
		})
	}
	// zsh completes only at a terminal, so it just runs the function that bash uses
	if path, err := exec.LookPath("zsh"); err == nil {
		script := filepath.Join(t.TempDir(), "script")
		require.NoError(t, os.WriteFile(script, []byte(runShell(t, "", "completion", "zsh").out), 0o600))
		out, err := exec.Command(path, "-fc", `source "$1" && _app_choices "items list -status"`, "zsh",
			script).CombinedOutput()
		require.NoError(t, err, "%s", out)
		assert.Equal(t, "active resolved muted archived\n", string(out))
	}
	assert.Equal(t, shell{2, "", `app: unknown command "bsh", did you mean "bash"? (valid: bash, fish, zsh)` + "\n"},
		runShell(t, "", "completion", "bsh"))
	assert.NotContains(t, runShell(t, "", "completion", "bash", "-read-only").out, "delete")
}
