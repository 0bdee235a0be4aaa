package main

import (
	"context"
	"embed"
	"slices"
	"strings"
	"text/template"
)

// completionFiles are templates of scripts. The one for bash, which zsh can run, too, has functions that find the
// command's words in the line and look up what may follow them. The one for fish has a rule for each word.
//
//go:embed completion
var completionFiles embed.FS

// completionCommand makes the subcommand that prints a script for a shell.
func (c *cli) completionCommand(root *subcommand) *subcommand {
	shell := func(name, file string) *subcommand {
		return simple(name, helpFrom("completion.txt"), nil, func(context.Context) error {
			settings := column(new(Config).settings(), func(s setting) string { return "-" + s.name })
			script := template.New(file).Funcs(template.FuncMap{"join": strings.Join})
			return template.Must(script.ParseFS(completionFiles, "completion/"+file)).Execute(c.std.out, struct {
				Shell    string
				Places   []completion
				Settings []string // there are many, so commands other than serve complete them only once more than a dash is typed
			}{name, c.completions(root, ""), settings})
		})
	}
	return c.group("completion", helpFrom("completion.txt"), shell("bash", "app.bash"), shell("fish", "app.fish"), shell("zsh", "app.bash"))
}

// A completion holds the words that may follow a command or one of its flags.
type completion struct {
	Command string // "items list"
	Flag    string // "-status", or ""
	Words   []string
}

// Place returns the command and the flag before the words.
func (c completion) Place() string { return strings.TrimSpace(c.Command + " " + c.Flag) }

// completions returns the completions of the subcommand and of all below it.
func (c *cli) completions(at *subcommand, name string) []completion {
	var below []completion
	for _, sub := range at.below {
		below = append(below, c.completions(sub, strings.TrimSpace(name+" "+sub.name))...)
	}
	own := at.flags
	if at.name == "serve" { // see completionCommand for the others
		own = append(own, c.settingFlags()...)
	}
	var flags []string
	for _, f := range own {
		flags = append(flags, f.names...)
		for _, flag := range f.names {
			if !f.isSwitch {
				below = append(below, completion{name, flag, f.values})
			}
		}
	}
	slices.Sort(flags)
	return append([]completion{{Command: name, Words: append(at.childNames(), flags...)}}, below...)
}
