# app: completion for fish. Load it with: app completion fish | source
function __app_long
	string match -qr -- '^--[a-z]' (commandline -ct)
end
function __app_setting
	string match -qr -- '^-[a-z]' (commandline -ct)
end
function __app_at
	set -l words
	for word in (commandline -opc)[2..]
		string match -q -- '-*' $word; and continue
		contains -- (string trim -- "$words $word"){{range .Places}}{{if not .Flag}} {{printf "%q" .Command}}{{end}}{{end}}; and set -a words $word
	end
	test "$words" = "$argv[1]"
end
{{range $at := .Places}}{{if .Flag -}}
complete -c app -n '__app_at {{printf "%q" .Command}}' -o {{slice .Flag 1}} {{with .Words}}-xa '{{join . " "}}'{{else}}-r{{end}}
{{else}}{{range .Words}}{{if eq (slice . 0 1) "-" -}}
complete -c app -n '__app_at {{printf "%q" $at.Command}}' -o {{slice . 1}}
complete -c app -n '__app_at {{printf "%q" $at.Command}}' -n __app_long -l {{slice . 1}}
{{else -}}
complete -c app -n '__app_at {{printf "%q" $at.Command}}' -fa {{.}}
{{end}}{{end}}{{end}}{{end}}{{range .Settings -}}
complete -c app -n __app_setting -o {{slice . 1}}
complete -c app -n __app_long -l {{slice . 1}}
{{end -}}
