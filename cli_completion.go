// cli_completion.go writes the scripts with which shells complete commands, flags and their values.
package main

import (
	"cmp"
	"context"
	"fmt"
	"io"
	"slices"
	"strings"
)

// completionCommand makes the subcommand that prints a script for a shell.
func (c *cli) completionCommand(root *subcommand) *subcommand {
	shell := func(name, header string, script func([]completion) string) *subcommand {
		return simple(name, completionHelp, nil, func(context.Context) error {
			_, err := io.WriteString(c.std.out, header+script(c.completions(root, "")))
			return err
		})
	}
	return c.group("completion", completionHelp,
		shell("bash", bashHeader, bashScript), shell("fish", fishHeader, fishScript), shell("zsh", zshHeader, bashScript))
}

// A completion is the words that may follow a command, or those that may follow a flag of it.
type completion struct {
	command string // "items list"
	flag    string // "-status", or ""
	words   []string
}

// completions returns the completions of the subcommand and of all below it.
func (c *cli) completions(at *subcommand, name string) []completion {
	var flags, below []completion
	for _, sub := range at.below {
		below = append(below, c.completions(sub, strings.TrimSpace(name+" "+sub.name))...)
	}
	own := at.flags
	if at.name == "serve" { // see settingWords for the others
		own = append(own, c.settingFlags()...)
	}
	for _, f := range own {
		for _, flag := range f.names {
			flags = append(flags, completion{name, flag, f.values})
		}
	}
	slices.SortFunc(flags, func(a, b completion) int { return cmp.Compare(a.flag, b.flag) })
	here := completion{command: name, words: at.childNames()}
	for _, f := range flags {
		here.words = append(here.words, f.flag)
		if len(f.words) > 0 {
			below = append(below, f)
		}
	}
	return append([]completion{here}, below...)
}

// settingWords returns the flags that are settings. There are many, so that other commands than serve complete
// them only once more than a dash is typed.
func settingWords() (words []string) {
	for _, s := range new(Config).settings() {
		words = append(words, "-"+s.name)
	}
	return words
}

const (
	bashHeader = "# app: completion for bash. Load it with: source <(app completion bash)\n"
	fishHeader = "# app: completion for fish. Load it with: app completion fish | source\n"
	zshHeader  = `#compdef app
# app: completion for zsh. Load it with: source <(app completion zsh)
autoload -U +X compinit bashcompinit
(( $+functions[compdef] )) || compinit
bashcompinit
`
)

// bashScript returns functions that find the words of the command in the line, and look up what may follow
// them. zsh can run them, too.
func bashScript(all []completion) string {
	var cases strings.Builder
	for _, c := range append(all, completion{command: "-", words: settingWords()}) {
		fmt.Fprintf(&cases, "\t\t%q) choices=%q ;;\n", strings.TrimSpace(c.command+" "+c.flag), strings.Join(c.words, " "))
	}
	return `_app_choices() {
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
	[[ "$line" != serve && "$current" == -*[a-z]* ]] && choices="$choices $(_app_choices -)"
	[[ "$current" == --* ]] && choices=" $choices" && choices="${choices// -/ --}"
	COMPREPLY=($(compgen -W "$choices" -- "$current"))
}
complete -o default -F _app app
[[ "${funcstack[1]}" == _app ]] && _bash_complete -o default -F _app # zsh loads this file at the first Tab
:
`
}

// fishScript returns a rule for each word that may follow a command.
func fishScript(all []completion) string {
	var names, rules strings.Builder
	for _, c := range all {
		rule := fmt.Sprintf("complete -c app -n '__app_at %q'", c.command)
		if c.flag != "" {
			fmt.Fprintf(&rules, "%s -o %s -xa '%s'\n", rule, c.flag[1:], strings.Join(c.words, " "))
			continue
		}
		fmt.Fprintf(&names, " %q", c.command)
		for _, word := range c.words {
			if flag, isFlag := strings.CutPrefix(word, "-"); isFlag {
				fmt.Fprintf(&rules, "%s -o %s\n%s -n __app_long -l %s\n", rule, flag, rule, flag)
			} else {
				fmt.Fprintf(&rules, "%s -fa %s\n", rule, word)
			}
		}
	}
	for _, word := range settingWords() {
		fmt.Fprintf(&rules, "complete -c app -n __app_setting -o %s\ncomplete -c app -n __app_long -l %s\n", word[1:], word[1:])
	}
	return `function __app_long
	string match -qr -- '^--[a-z]' (commandline -ct)
end
function __app_setting
	string match -qr -- '^-[a-z]' (commandline -ct)
end
function __app_at
	set -l words
	for word in (commandline -opc)[2..]
		string match -q -- '-*' $word; and continue
		contains -- (string trim -- "$words $word")` + names.String() + `; and set -a words $word
	end
	test "$words" = "$argv[1]"
end
` + rules.String()
}
