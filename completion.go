// completion.go writes the scripts by which shells complete commands, flags and their values.
package main

import (
	"flag"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/peterbourgon/ff/v3/ffcli"
)

// completionScripts make the scripts from what may follow a line.
var completionScripts = map[string]func([]completion) string{"bash": bashCompletion, "zsh": zshCompletion, "fish": fishCompletion}

// A completion is what may follow some words of a line: those of a command, or a flag's behind it.
type completion struct {
	line    string   // "items list", or "items list -status" for the values of the flag
	choices []string // words
}

// completions are those of the command and all below it.
func completions(c *ffcli.Command, line string) []completion {
	var all []completion
	here := completion{line: line}
	for _, sub := range c.Subcommands {
		here.choices = append(here.choices, sub.Name)
		all = append(all, completions(sub, strings.TrimSpace(line+" "+sub.Name))...)
	}
	if words, ok := completionArguments[line]; ok {
		here.choices = slices.Clone(words)
	}
	c.FlagSet.VisitAll(func(f *flag.Flag) {
		if _, isSetting := f.Value.(*settingFlag); isSetting && len(c.Subcommands) > 0 {
			return // there are many, and they may as well come later
		}
		here.choices = append(here.choices, "-"+f.Name)
		if values := flagValues(f); len(values) > 0 {
			all = append(all, completion{strings.TrimSpace(line + " -" + f.Name), values})
		}
	})
	return append([]completion{here}, all...)
}

// completionArguments are the arguments that are one of a few words.
var completionArguments = map[string][]string{"completion": shells()}

func shells() []string { return slices.Sorted(maps.Keys(completionScripts)) }

// flagValues are the values of a flag, where they are few.
func flagValues(f *flag.Flag) []string {
	switch value := f.Value.(type) {
	case *paramFlag:
		return value.p.enum
	case *settingFlag:
		if value.name == "log-level" {
			return []string{"debug", "info", "warn", "error"}
		}
	}
	if f.Name == "output" || f.Name == "o" {
		return outputFormats
	}
	return nil
}

// bashCompletion finds the words of the command in the line, and looks up what follows them.
func bashCompletion(all []completion) string {
	var cases strings.Builder
	for _, c := range all {
		fmt.Fprintf(&cases, "\t\t%q) choices=%q ;;\n", c.line, strings.Join(c.choices, " "))
	}
	return `# app: completion for bash. Load it with: source <(app completion bash)
_app_choices() {
	local choices=
	case "$1" in
` + cases.String() + `	esac
	echo "$choices"
}
_app() {
	local current="${COMP_WORDS[COMP_CWORD]}" before="${COMP_WORDS[COMP_CWORD-1]}" line= word choices=
	for word in "${COMP_WORDS[@]:1:$((COMP_CWORD-1))}"; do
		if [[ "$word" != -* && " $(_app_choices "$line") " == *" $word "* ]]; then
			line="${line:+$line }$word"
		fi
	done
	[[ "$current" == = ]] && current=
	[[ "$before" == = ]] && before="${COMP_WORDS[COMP_CWORD-2]}"
	before="${before/#--/-}"
	[[ "$before" == -* ]] && choices="$(_app_choices "${line:+$line }$before")"
	[[ -n "$choices" ]] || choices="$(_app_choices "$line")"
	COMPREPLY=($(compgen -W "$choices" -- "$current"))
}
complete -o default -F _app app
`
}

// zshCompletion is bash's, which zsh can run.
func zshCompletion(all []completion) string {
	return `#compdef app
# app: completion for zsh. Load it with: source <(app completion zsh)
autoload -U +X compinit bashcompinit
(( $+functions[compdef] )) || compinit
bashcompinit
` + strings.TrimPrefix(bashCompletion(all), "# app: completion for bash. Load it with: source <(app completion bash)\n")
}

// fishCompletion has a rule for each word that may follow a line.
func fishCompletion(all []completion) string {
	var rules strings.Builder
	for _, c := range all {
		words := strings.Fields(c.line)
		if last := len(words) - 1; last >= 0 && strings.HasPrefix(words[last], "-") {
			command := strings.Join(words[:last], " ")
			fmt.Fprintf(&rules, "complete -c app -n '__app_at \"%s\"' -o %s -xa '%s'\n", command, words[last][1:], strings.Join(c.choices, " "))
			continue
		}
		for _, choice := range c.choices {
			if name, isFlag := strings.CutPrefix(choice, "-"); isFlag {
				fmt.Fprintf(&rules, "complete -c app -n '__app_at \"%s\"' -o %s\n", c.line, name)
			} else {
				fmt.Fprintf(&rules, "complete -c app -n '__app_at \"%s\"' -fa %s\n", c.line, choice)
			}
		}
	}
	return `# app: completion for fish. Load it with: app completion fish | source
function __app_at
	set -l words
	for word in (commandline -opc)[2..]
		string match -q -- '-*' $word; and continue
		contains -- "$words $word" ` + fishLines(all) + `; and set -a words $word
	end
	test "$words" = "$argv[1]"
end
` + rules.String()
}

// fishLines are the lines of commands as __app_at puts them together.
func fishLines(all []completion) string {
	var lines []string
	for _, c := range all {
		if c.line != "" && !strings.Contains(c.line, "-") {
			if !strings.Contains(c.line, " ") {
				c.line = " " + c.line
			}
			lines = append(lines, fmt.Sprintf("%q", c.line))
		}
	}
	return strings.Join(lines, " ")
}
