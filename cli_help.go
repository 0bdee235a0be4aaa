package main

import (
	"embed"
	"fmt"
	"strings"

	"app/internal/terminal"
)

// alignColumns returns the rows, whose cells are separated by tabs, as an indented table.
func alignColumns(rows ...string) string {
	var b strings.Builder
	w := &terminal.Table{Out: &b}
	fmt.Fprintln(w, "  "+strings.Join(rows, "\n  "))
	w.Flush() // a Builder returns no errors
	return b.String()
}

// commandRows returns a row for each operation whose name has the prefix, without the prefix.
func (c *cli) commandRows(prefix string) (rows []string) {
	for _, command := range c.commands {
		if name, ok := strings.CutPrefix(command.Name, prefix); ok {
			rows = append(rows, strings.Replace(name, ".", " ", 1)+"\t"+command.Route+"\t"+command.Short)
		}
	}
	return rows
}

func (c *cli) rootHelp() string {
	rows := append(c.commandRows(""),
		"serve\t\tRun the HTTP service",
		"mcp\t\tServe agents on standard input and output",
		"version\t\tPrint the version",
		"completion\t\tPrint a shell completion script",
	)
	return "Usage: app COMMAND [flags] [arguments]\n\nUse Rollbar over HTTP and from the shell. Everything that passes through is kept in your own PostgreSQL.\n\n" +
		"Commands and their HTTP routes:\n" + alignColumns(rows...) +
		"\n" + settingsHelp() +
		"\nEvery command has its own help, for example: app items list -h\n"
}

func (c *cli) nounHelp(noun string) string {
	return "Usage: app " + noun + " COMMAND [flags] [arguments]\n\nCommands and their HTTP routes:\n" + alignColumns(c.commandRows(noun+".")...) +
		"\nEvery command has its own help, for example: app " + noun + " list -h\n"
}

func settingsHelp() string {
	rows := column(new(Config).settings(), func(s setting) string {
		return "-" + s.name + "\t" + s.env() + "\t" + withDefault(s.help, s.preset)
	})
	return "Settings, each of which is a flag, an environment variable or a line of .env:\n" + alignColumns(rows...)
}

func withDefault(help, value string) string {
	if value == "" {
		return help
	}
	return help + " (default " + value + ")"
}

func serveHelp(dev cliFlag) string {
	return "Usage: app serve [flags]\n\nRun the HTTP service.\n\n" + alignColumns(dev.names[0]+"\t"+dev.help) + "\n" + settingsHelp()
}

// commandHelp returns the help of an operation with the flags. Its last line is the route.
func commandHelp(c *Command, flags []cliFlag) string {
	usage := "Usage: app " + strings.Join(c.words(), " ") + " [flags]"
	var rows []string
	for _, p := range c.paramsIn(inPath) {
		usage += " " + label(p)
		rows = append(rows, label(p)+"\t\t"+withDefault(p.help, p.value))
	}
	for _, f := range flags {
		rows = append(rows, strings.Join(f.names, ", ")+"\t"+f.value+"\t"+withDefault(f.help, f.preset))
	}
	help := usage + "\n\n" + c.Short + ".\n"
	if c.Long != "" {
		help += c.Long + "\n"
	}
	return help + "\n" + alignColumns(rows...) + "\nAll settings are flags, too; app -h lists them.\n\n" + c.usage() + "\n"
}

// helpFiles are texts that depend on no operation: help, instructions for agents, and what serve -dev prints.
//
//go:embed help
var helpFiles embed.FS

// helpFrom returns a function that returns the text of a file.
func helpFrom(file string) func() string {
	return func() string {
		text, _ := helpFiles.ReadFile("help/" + file) // the file is embedded
		return string(text)
	}
}

// placeholders stand for the values of flags, by kind.
var placeholders = map[paramKind]string{kindText: "TEXT", kindOther: "TEXT", kindNumber: "N", kindObject: "JSON"}
