// help.go writes the help texts of the command line, from the registry and the settings.
package main

import (
	"fmt"
	"strings"
	"text/tabwriter"
)

// columns lines up rows of cells that are separated by tabs.
func columns(rows ...string) string {
	var b strings.Builder
	w := tabwriter.NewWriter(&b, 0, 8, 2, ' ', 0)
	for _, row := range rows {
		fmt.Fprintln(w, "  "+row)
	}
	w.Flush() // to a Builder, which takes all
	return b.String()
}

// commandRows are the commands of a noun, or all for "", with their routes.
func (c *cli) commandRows(noun string) []string {
	var rows []string
	for _, command := range c.commands {
		words := command.words()
		if noun == "" {
			rows = append(rows, fmt.Sprintf("%s\t%s\t%s", strings.Join(words, " "), command.Route, command.Short))
		} else if words[0] == noun {
			rows = append(rows, fmt.Sprintf("%s\t%s\t%s", words[1], command.Route, command.Short))
		}
	}
	return rows
}

func (c *cli) rootHelp() string {
	rows := append(c.commandRows(""),
		"serve\t\tRun the service",
		"version\t\tPrint the version",
		"completion\t\tPrint a script that completes commands in a shell",
	)
	return "Rollbar over HTTP and the shell, with everything it saw kept in your own PostgreSQL.\n\n" +
		"Commands, and the routes of the service that do the same:\n" + columns(rows...) +
		"\nSettings, as flags, in the environment (ADDR, …) or in .env:\n" + settingsHelp() +
		"\nEach command has its own help: app items list -h\n"
}

func (c *cli) nounHelp(noun string) string {
	return "Commands, and the routes of the service that do the same:\n" + columns(c.commandRows(noun)...) +
		"\nEach command has its own help: app " + noun + " list -h\n"
}

func settingsHelp() string {
	var rows []string
	for _, s := range new(Config).settings() {
		help := s.help
		if s.preset != "" {
			help += " (default " + s.preset + ")"
		}
		rows = append(rows, fmt.Sprintf("-%s\t%s\t%s", s.name, s.env(), help))
	}
	return columns(rows...)
}

// commandHelp is the help of one operation. It ends with the route.
func commandHelp(c *Command) string {
	usage := "Usage: app " + strings.Join(c.words(), " ") + " [flags]"
	var rows []string
	for _, p := range c.Run.params {
		if p.in == inPath {
			usage += " " + label(p)
			rows = append(rows, fmt.Sprintf("%s\t\t%s", label(p), p.help))
		} else {
			rows = append(rows, fmt.Sprintf("%s\t%s\t%s", label(p), p.placeholder(), p.describe()))
		}
	}
	if c.Confirm != "" {
		rows = append(rows, "-yes\t\tdo not ask: "+c.Confirm)
	}
	rows = append(rows,
		"-output, -o\t"+strings.Join(outputFormats, "|")+"\ta table on a terminal and else json",
		"-as-curl\t\tprint the request instead of making it",
	)
	help := usage + "\n\n" + c.Short + ".\n"
	if c.Long != "" {
		help += c.Long + "\n"
	}
	return help + "\n" + columns(rows...) + "\nSettings are flags too: app -h lists them.\n\n" + c.usage() + "\n"
}

// placeholder stands for a parameter's value.
func (p *param) placeholder() string {
	switch {
	case p.file:
		return "FILE"
	case len(p.enum) > 0:
		return strings.Join(p.enum, "|")
	case p.kind == kindBool:
		return ""
	case p.kind == kindNumber:
		return "N"
	case p.kind == kindObject:
		return "JSON"
	}
	return "TEXT"
}

// describe is a parameter's help with its default.
func (p *param) describe() string {
	help := p.help
	if p.file {
		help += "; - is standard input"
	}
	if p.value != "" && p.kind != kindBool {
		help += " (default " + p.value + ")"
	}
	return help
}

const completionHelp = `Print a script that completes commands, flags and values:

  source <(app completion bash)     for bash, in ~/.bashrc
  source <(app completion zsh)      for zsh, in ~/.zshrc
  app completion fish | source      for fish, in ~/.config/fish/config.fish
`

func serveHelp() string {
	return "Usage: app serve [flags]\n\nRun the service.\n\n" +
		columns(
			"-dev\ttry it: a private PostgreSQL, kept in .dev, and a sandbox instead of Rollbar",
			"-trace\tprint where each request's time went, to standard error",
		) +
		"\nSettings, as flags, in the environment or in .env:\n" + settingsHelp()
}
