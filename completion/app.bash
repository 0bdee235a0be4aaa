{{if eq .Shell "zsh" -}}
#compdef app
# app: completion for zsh. Load it with: source <(app completion zsh)
autoload -U +X compinit bashcompinit
(( $+functions[compdef] )) || compinit
bashcompinit
{{else -}}
# app: completion for bash. Load it with: source <(app completion bash)
{{end -}}
_app_choices() {
	local choices=
	case "$1" in
{{range .Places}}		{{printf "%q" .Place}}) choices={{with join .Words " "}}{{printf "%q" .}}{{else}}" "{{end}} ;;
{{end}}		"-") choices={{printf "%q" (join .Settings " ")}} ;;
	esac
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
	[[ "$before" == -* && -z "$choices" ]] && choices="$(_app_choices "serve $before")" # a setting
	[[ -n "$choices" ]] || choices="$(_app_choices "$line")"
	[[ "$line" != serve && "$current" == -*[a-z]* ]] && choices="$choices $(_app_choices -)"
	[[ "$current" == --* ]] && choices=" $choices" && choices="${choices// -/ --}"
	COMPREPLY=($(compgen -W "$choices" -- "$current"))
}
complete -o default -F _app app
[[ "${funcstack[1]}" == _app ]] && _bash_complete -o default -F _app # zsh loads this file at the first Tab
:
