package main

import (
	"fmt"
	"math"
	"strings"
	"testing"
)

// docs/reference.md is generated from the registry, the settings and the table of failures: go test -update
// rewrites it.
func TestReference(t *testing.T) {
	t.Parallel()
	var text strings.Builder
	text.WriteString("# Reference\n\nEach operation is a route and a subcommand with the same parameters. `go test . " +
		"-update` writes this page.\n\n## Operations\n")
	for _, c := range commands {
		writeOperation(&text, c)
	}
	text.WriteString("\n## Failures\n\nOver HTTP, failures are RFC 9457 problem details of the type " +
		"`/problems/KIND`.\n\n" +
		"| kind | HTTP | exit code | title |\n| --- | --- | --- | --- |\n")
	for _, k := range failureKinds {
		fmt.Fprintf(&text, "| %s | %d | %d | %s |\n", k.name, k.status, k.exit, k.title)
	}
	text.WriteString("\n## Settings\n\nA setting is a flag, an environment variable or a line of `.env`; the first " +
		"one that is set counts.\n\n" +
		"| setting | flag | default | |\n| --- | --- | --- | --- |\n")
	for _, s := range new(Config).settings() {
		fmt.Fprintf(&text, "| `%s` | `-%s` | %s | %s |\n", s.env(), s.name, code(s.preset), s.help)
	}
	requireGolden(t, "../docs/reference.md", text.String())
}

func writeOperation(text *strings.Builder, c *Command) {
	usage := "app " + strings.Join(c.words(), " ")
	for _, name := range c.names(inPath) {
		usage += " " + strings.ToUpper(name)
	}
	fmt.Fprintf(text, "\n### %s\n\n%s.", c.Name, c.Short)
	if c.Long != "" {
		fmt.Fprintf(text, " %s", strings.Join(strings.Fields(c.Long), " "))
	}
	fmt.Fprintf(text, "\n\n    %s\n    %s\n", strings.Join(c.routes(), "\n    "), usage)
	if len(c.Run.params) == 0 {
		return
	}
	text.WriteString("\n| parameter | flag | values | default | |\n| --- | --- | --- | --- | --- |\n")
	for _, p := range c.Run.params {
		flag, values, preset := "`"+label(p)+"`", strings.Join(p.enum, ", "), code(p.value)
		if p.in == inPath {
			flag = ""
		}
		if p.required {
			preset = "required"
		}
		switch {
		case values != "":
		case p.kind == kindText && p.min == 1 && p.max == math.MaxInt64:
			values = "text, not empty"
		case p.kind == kindText:
			values = strings.TrimSpace("text" + p.bounds(" characters"))
		case p.kind != kindOther: // kindOther explains its values in the help
			values = string(p.kind) + p.bounds("")
		}
		if p.nullable {
			values += ", null"
		}
		fmt.Fprintf(text, "| `%s` | %s | %s | %s | %s |\n", p.name, flag, values, preset,
			strings.ReplaceAll(p.help, "|", `\|`))
	}
}

func code(text string) string {
	if text == "" {
		return ""
	}
	return "`" + text + "`"
}
