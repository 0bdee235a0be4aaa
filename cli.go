package main

import (
	"cmp"
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"maps"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/peterbourgon/ff/v3/ffcli"

	"app/internal/async"
	"app/internal/datadog"
	"app/internal/rawjson"
	"app/internal/secrets"
	"app/internal/spelling"
	"app/internal/terminal"
)

// A cli is one run of the command line.
type cli struct {
	std      console
	commands []*Command
	leftOut  []*Command // all commands, including those that READ_ONLY leaves out
	serve    func(ctx context.Context, config *Config, commands []*Command, dev bool, std console) error

	args        arguments // given for the operation
	output      string    // the requested format, or ""
	fields      []string  // the requested columns, or nil
	asCurl, yes bool
	settings    []string // the settings given as flags: -name=value
	refused     error    // the first thing wrong with the flags, or nil

	config    *Config
	mask      *secrets.Mask // nil until the settings are loaded
	telemetry *datadog.Client
	app       *App            // nil with APP_URL
	table     *terminal.Table // shows the result
	exit      int             // the exit code of a run without an error
}

// run runs the command line and returns the exit code.
func (c *cli) run(ctx context.Context, args []string) int {
	readOnly, output := lookAhead(args, c.std.envFile)
	c.commands, c.leftOut, c.output = allowed(c.commands, readOnly), c.commands, output
	c.args = arguments{map[string][]literal{}, label}
	if output == "" && terminal.Is(c.std.out) {
		c.output = "table"
	}
	arranged, selected, err := c.arrange(c.tree(), translateArgs(args))
	if errors.Is(err, flag.ErrHelp) {
		_, err = fmt.Fprint(c.std.out, selected.help())
	} else {
		c.refused = err
		err = c.command(selected).ParseAndRun(ctx, arranged)
	}
	if err != nil {
		if c.mask == nil { // the settings were not needed
			config, _ := loadConfig(c.settings, c.std.envFile)
			c.mask = config.mask()
		}
		return c.fail(err)
	}
	return c.exit
}

// translateArgs translates other programs' words for help and version in the arguments to ours.
func translateArgs(args []string) []string {
	switch {
	case len(args) > 0 && args[0] == "help":
		return append(slices.Clone(args[1:]), "-h")
	case len(args) > 0 && (args[0] == "-version" || args[0] == "--version"):
		return append([]string{"version"}, args[1:]...)
	}
	return args
}

// lookAhead finds two flags before all are parsed, even if others are wrong: READ_ONLY decides which subcommands
// exist, and the output format decides how errors are printed.
func lookAhead(args []string, envFile string) (readOnly bool, output string) {
	var given []string
	for i, arg := range args {
		name, value, hasValue := cutFlag(arg)
		switch {
		case name == "read-only":
			given = append(given, arg)
		case name != "output" && name != "o":
		case !hasValue && i+1 < len(args):
			output = args[i+1]
		default:
			output = value
		}
	}
	config, _ := loadConfig(given, envFile, "read-only") // errors are reported when all settings are loaded
	return config.ReadOnly, output
}

// loadConfig loads the settings and reports misspelt ones. From then on, standard error shows no secrets.
func (c *cli) loadConfig() (err error) {
	c.config, err = loadConfig(c.settings, c.std.envFile)
	c.mask = c.config.mask()
	for _, remark := range c.config.misspelt {
		fmt.Fprintln(c.stderr(), "app:", remark)
	}
	return err
}

func (c *cli) stderr() io.Writer { return c.mask.Writer(c.safe(c.std.err)) }

// fail prints the error, as a problem if JSON was asked for and otherwise as one line, and returns the exit code.
func (c *cli) fail(err error) int {
	f := failureWithCause(err)
	if unwritten, ok := errors.AsType[*fs.PathError](err); ok && f.kind == internal && unwritten.Op == "write" {
		f.detail = "cannot write the result: " + unwritten.Err.Error()
	}
	if c.output == "json" || c.output == "ndjson" {
		_ = writeResult(c.stderr(), f.problem(rand.Text()))
	} else {
		fmt.Fprintln(c.stderr(), "app:", strings.Join(strings.Fields(f.detail), " "))
	}
	return f.kind.exit
}

// failureWithCause returns the failure as the command line reports it: unlike a server's caller, its user may
// see the cause.
func failureWithCause(err error) *Failure {
	f := failureOf(err).onCommandLine()
	if f.err != nil && f.kind != interrupted && !strings.Contains(f.detail, f.err.Error()) {
		f.detail += ": " + f.err.Error()
	}
	if f.wait > 0 {
		f.detail += fmt.Sprintf(" (try again in %v)", f.wait.Round(time.Second))
	}
	return f
}

// A subcommand is a word of the command line with what may follow it.
type subcommand struct {
	name  string
	help  func() string
	flags []cliFlag // other than the settings
	below []*subcommand
	run   func(ctx context.Context, words []string, refused error) error // refused is what is wrong with the flags
}

// A cliFlag is a flag of the command line.
type cliFlag struct {
	names    []string // -output, -o
	help     string
	preset   string                   // the default, or ""
	value    string                   // placeholder of the value in help, or ""
	values   []string                 // the valid ones, or nil if they cannot be listed
	isSwitch bool                     // it needs no value
	set      func(value string) error // its errors follow the name: "must be …"
}

func switchFlag(name, help string, target *bool) cliFlag {
	return cliFlag{names: []string{name}, help: help, isSwitch: true, set: parsed(target, parseBool)}
}

// settingFlags returns the settings as flags, which every subcommand accepts.
func (c *cli) settingFlags() []cliFlag {
	values := map[string][]string{"log-level": {"debug", "info", "warn", "error"}}
	return column(new(Config).settings(), func(s setting) cliFlag {
		set := func(value string) error {
			err := s.parse(value)
			if err == nil && strings.TrimSpace(value) != "" {
				c.settings = append(c.settings, "-"+s.name+"="+value)
			}
			return err
		}
		return cliFlag{names: []string{"-" + s.name}, help: s.help, values: values[s.name], isSwitch: s.isSwitch(), set: set}
	})
}

// tree builds the subcommands of the registry and those that exist only on the command line.
func (c *cli) tree() *subcommand {
	root := c.group("app", c.rootHelp)
	for _, command := range c.commands {
		parent, words := root, command.words()
		if len(words) > 1 {
			if parent = root.child(words[0]); parent == nil {
				parent = c.group(words[0], func() string { return c.nounHelp(words[0]) })
				root.below = append(root.below, parent)
			}
		}
		parent.below = append(parent.below, c.operation(words[len(words)-1], command))
	}
	version := func(context.Context) error { return writeResult(c.std.out, Text(buildVersion())) }
	root.below = append(root.below, c.serveCommand(), simple("mcp", helpFrom("mcp.txt"), nil, c.runMCP),
		simple("version", helpFrom("version.txt"), nil, version), c.completionCommand(root))
	return root
}

// group makes a subcommand that only holds others. Called alone, it prints its help.
func (c *cli) group(name string, help func() string, below ...*subcommand) *subcommand {
	return &subcommand{name, help, nil, below, func(_ context.Context, _ []string, refused error) error {
		if refused == nil {
			fmt.Fprint(c.std.err, help())
			c.exit = invalid.exit
		}
		return refused
	}}
}

// simple makes a subcommand that is not an operation and takes no arguments.
func simple(name string, help func() string, flags []cliFlag, run func(context.Context) error) *subcommand {
	return &subcommand{name, help, flags, nil, func(ctx context.Context, words []string, refused error) error {
		switch {
		case refused != nil:
			return refused
		case len(words) > 0:
			return fail(invalid, "unexpected argument %q", words[0])
		}
		return run(ctx)
	}}
}

func (c *cli) serveCommand() *subcommand {
	dev := false
	devFlag := switchFlag("-dev", "try the service: use a private PostgreSQL, kept in .dev, and a fake Rollbar", &dev)
	return simple("serve", func() string { return serveHelp(devFlag) }, []cliFlag{devFlag}, func(ctx context.Context) error {
		if err := c.loadConfig(); err != nil {
			return err
		}
		isGiven := func(flag string) bool { return strings.HasPrefix(flag, "-database-url=") }
		if dev && !slices.ContainsFunc(c.settings, isGiven) { // the environment's database is not for trying things
			c.config.DatabaseURL, c.config.DatabaseReadURL = "", ""
		}
		return c.serve(ctx, c.config, c.commands, dev, c.std)
	})
}

var outputFormats = []string{"table", "json", "ndjson", "csv"}

func (c *cli) setOutput(format string) error {
	c.output = format
	if !slices.Contains(outputFormats, format) {
		return errors.New("must be one of " + strings.Join(outputFormats, ", "))
	}
	return nil
}

// operation makes the subcommand of a command.
func (c *cli) operation(name string, command *Command) *subcommand {
	flags := column(command.paramsIn(inQuery, inBody, inFlag), c.flag)
	if command.Confirm != nil {
		flags = append(flags, switchFlag("-yes", "do not ask for confirmation", &c.yes))
	}
	if command.hasFields() {
		const help = "columns of a table or of csv: member names separated by commas, with dots for nested ones"
		flags = append(flags, cliFlag{names: []string{"-fields"}, help: help, value: "NAME,…", set: c.setFields})
	}
	flags = append(flags, cliFlag{
		names: []string{"-output", "-o"}, help: "output format (default: table on a terminal, json elsewhere)",
		value: strings.Join(outputFormats, "|"), values: outputFormats, set: c.setOutput,
	}, switchFlag("-as-curl", "print the request as a curl command instead of sending it", &c.asCurl))
	help := func() string { return commandHelp(command, flags) }
	return &subcommand{name, help, flags, nil, func(ctx context.Context, words []string, refused error) error {
		return c.execute(ctx, command, words, refused)
	}}
}

// flag makes the flag of a parameter. It takes any text: the registry checks it later.
func (c *cli) flag(p *param) cliFlag {
	f := cliFlag{names: []string{label(p)}, help: p.help, preset: p.value, values: p.enum, isSwitch: p.kind == kindBool}
	f.value = cmp.Or(strings.Join(p.enum, "|"), placeholders[p.kind])
	f.set = func(text string) error {
		c.args.values[p.name] = append(c.args.values[p.name], literal{text: text})
		return nil
	}
	switch {
	case p.file:
		f.value = "FILE"
		f.help += fmt.Sprintf("; the file holds {%q:{…}}; use - for standard input", p.name)
	case f.isSwitch:
		f.preset = ""
	}
	return f
}

// label names a parameter in messages: ID, -code-version.
func label(p *param) string {
	if p.in == inPath {
		return strings.ToUpper(p.name)
	}
	return "-" + strings.ReplaceAll(p.name, "_", "-")
}

// start sets up what operations need. It logs only if the level is debug, since errors are printed anyway.
func (c *cli) start() (err error) {
	log := slog.New(slog.DiscardHandler)
	if c.config.LogLevel <= slog.LevelDebug {
		log = slog.New(slog.NewTextHandler(c.stderr(), &slog.HandlerOptions{Level: c.config.LogLevel}))
	}
	slog.SetDefault(log) // net/http prints through the standard logger
	c.telemetry, err = c.config.startTelemetry(log)
	if err == nil && c.config.AppURL == "" {
		c.app, err = newApp(c.config, log, c.telemetry)
	}
	return err
}

// runOperation runs an operation in this program, or on the server at APP_URL.
func (c *cli) runOperation(ctx context.Context, command *Command, args arguments, operation prepared) (any, error) {
	if c.app == nil {
		return runRemotely(ctx, c.config, command, args)
	}
	return operation(ctx, c.app)
}

// execute runs an operation and prints its result. An error in the arguments takes precedence over one in the
// settings, and counts as a failure of the operation.
func (c *cli) execute(ctx context.Context, command *Command, words []string, err error) error {
	var operation prepared
	if err == nil {
		operation, err = c.prepare(ctx, command, words)
	}
	if configErr := c.loadConfig(); configErr != nil {
		return cmp.Or(err, configErr)
	}
	if err == nil && c.asCurl {
		return c.printCurl(ctx, command)
	}
	if startErr := c.start(); startErr != nil {
		return cmp.Or(err, startErr)
	}
	defer c.telemetry.Close(time.Second)
	defer c.app.Close()
	if err == nil && command.Confirm != nil && !c.yes {
		err = c.confirm(ctx, command)
	}
	call, endProgress := c.newCall()
	ctx, finish := startCommand(withCall(ctx, call), c.telemetry, command, "cli")
	var value any
	if err == nil {
		value, err = c.runOperation(ctx, command, c.args, operation)
	}
	if err == nil {
		err = c.print(command, value)
	}
	finish(value, err)
	endProgress()
	if err != nil {
		return err
	}
	for _, remark := range call.remarks() {
		fmt.Fprintln(c.stderr(), "app:", remark)
	}
	c.exit = outcomeOf(value).exit
	return nil
}

// prepare adds the words and the files to the values of the flags, and checks them all.
func (c *cli) prepare(ctx context.Context, command *Command, words []string) (prepared, error) {
	if err := c.checkOutput(command); err != nil {
		return nil, err
	}
	path := command.names(inPath)
	if len(words) > len(path) {
		return nil, fail(invalid, "unexpected argument %q", words[len(path)])
	}
	for i, text := range words {
		c.args.values[path[i]] = literals(text)
	}
	for _, p := range command.Run.params {
		if !p.file {
			continue
		}
		files := c.args.values[p.name]
		delete(c.args.values, p.name)
		for _, file := range files {
			body, err := c.readBody(ctx, command, file.text)
			if err != nil {
				return nil, err
			}
			for name, value := range body {
				c.args.values[name] = append(c.args.values[name], literal{text: string(value), json: true})
			}
		}
	}
	for _, name := range append(command.names(inFlag), "fields") {
		if c.asCurl && (len(c.args.values[name]) > 0 || name == "fields" && c.fields != nil) {
			return nil, fail(invalid, "-as-curl cannot show -%s, which is not part of a request", name)
		}
	}
	return command.Run.prepare(c.args)
}

// readBody reads the command's JSON body from a file, or from standard input if the name is "-".
func (c *cli) readBody(ctx context.Context, command *Command, name string) (body map[string]json.RawMessage, err error) {
	isFile := name != "-"
	if !isFile {
		name = "standard input"
	}
	var text []byte
	err = async.Interruptible(ctx, func() (err error) {
		source := c.std.in
		if isFile {
			file, err := os.Open(name)
			if err != nil {
				return err
			}
			defer file.Close()
			source = file
		}
		text, err = io.ReadAll(io.LimitReader(source, maxBody+1))
		return err
	})
	switch {
	case errors.Is(err, context.Canceled):
		return nil, err
	case err != nil:
		return nil, fail(invalid, "cannot read the file with the JSON body: %w", err)
	case len(text) > maxBody:
		return nil, fail(tooLarge, "%s is larger than %d bytes", name, maxBody)
	}
	if body, err = rawjson.Object(text); err != nil {
		return nil, fail(invalid, "%s is not valid: %w", name, err)
	}
	if err = command.checkNames("field", maps.Keys(body), inQuery, inBody); err != nil {
		return nil, fmt.Errorf("%s: %w", name, err)
	}
	return body, nil
}

// newCall returns the call of an operation, which shows its progress on a terminal until end is called or the
// result is printed.
func (c *cli) newCall() (call *Call, end func()) {
	call = &Call{stream: c.output == "ndjson"}
	progress := &terminal.Progress{Out: c.std.err, Began: time.Now()}
	if terminal.Is(c.std.err) {
		call.progress = progress.Show
	}
	c.table = &terminal.Table{Out: c.std.out}
	if width := terminal.Width(c.std.out); width > 0 {
		c.table = &terminal.Table{Out: progress.Before(c.std.out), Width: width}
		if os.Getenv("NO_COLOR") == "" && os.Getenv("TERM") != "dumb" {
			c.table.Colours = colours
		}
		c.std.out = progress.Before(c.safe(c.std.out))
	}
	return call, progress.End
}

// command converts the subcommand to one of ff, which parses the flags.
func (c *cli) command(s *subcommand) *ffcli.Command {
	flags := flag.NewFlagSet(s.name, flag.ContinueOnError)
	flags.SetOutput(io.Discard)
	for _, f := range slices.Concat(s.flags, c.settingFlags()) {
		define := flags.Func
		if f.isSwitch {
			define = flags.BoolFunc
		}
		for _, name := range f.names {
			define(name[1:], f.help, func(value string) error {
				if err := f.set(value); err != nil && c.refused == nil {
					c.refused = fail(invalid, "%s %w", f.names[0], err)
				}
				return nil
			})
		}
	}
	run := func(ctx context.Context, words []string) error { return s.run(ctx, words, c.refused) }
	return &ffcli.Command{Name: s.name, FlagSet: flags, Exec: run}
}

// arrange returns the subcommand that the words select, and the rest with the flags before the arguments, because
// package flag stops at the first argument. It refuses unknown flags and subcommands, naming the valid ones, and
// then returns what came before them. Everything after -- is an argument.
func (c *cli) arrange(at *subcommand, args []string) (arranged []string, selected *subcommand, err error) {
	var words []string
	for settings := c.settingFlags(); len(args) > 0; {
		arg := args[0]
		args = args[1:]
		name, _, hasValue := cutFlag(arg)
		switch {
		case arg == "--":
			words, args = append(words, args...), nil
		case name == "h", name == "help":
			return arranged, at, flag.ErrHelp
		case name != "":
			flags := slices.Concat(at.flags, settings)
			i := slices.IndexFunc(flags, func(f cliFlag) bool { return slices.Contains(f.names, "-"+name) })
			if i < 0 {
				return arranged, at, unknownFlag(name, at.flags, settings)
			}
			needsValue := !hasValue && !flags[i].isSwitch
			if needsValue && len(args) == 0 {
				return arranged, at, fail(invalid, "the flag -%s needs a value: %s", name, flags[i].help)
			}
			arranged = append(arranged, arg)
			if needsValue {
				arranged, args = append(arranged, args[0]), args[1:]
			}
		case len(at.below) == 0:
			words = append(words, arg)
		case at.child(arg) == nil:
			return arranged, at, c.unknownCommand(at, arg)
		default:
			at = at.child(arg)
		}
	}
	return append(append(arranged, "--"), words...), at, nil
}

// child returns the subcommand with the name, or nil.
func (s *subcommand) child(name string) *subcommand {
	if i := slices.Index(s.childNames(), name); i >= 0 {
		return s.below[i]
	}
	return nil
}

func (s *subcommand) childNames() []string {
	return column(s.below, func(sub *subcommand) string { return sub.name })
}

// unknownCommand returns the failure for a word that is not a subcommand of the group.
func (c *cli) unknownCommand(group *subcommand, word string) error {
	if slices.ContainsFunc(c.leftOut, func(o *Command) bool { return o.Name == group.name+"."+word }) {
		return fail(invalid, "%s %s is left out by READ_ONLY, since it changes something", group.name, word)
	}
	return fail(invalid, "%s", unknown("command", word, group.childNames()))
}

// unknownFlag returns the failure for an unknown flag. Of the settings, it names only likely ones.
func unknownFlag(name string, flags, settings []cliFlag) error {
	valid := slices.Concat(column(flags, func(f cliFlag) []string { return f.names })...)
	for _, s := range settings {
		if spelling.Nearest(name, []string{s.names[0][1:]}) != "" {
			valid = append(valid, s.names[0])
		}
	}
	slices.Sort(valid)
	return fail(invalid, "%s", unknown("flag", "-"+name, append(valid, "the settings that app -h lists")))
}

// cutFlag returns the name of a flag such as -name or --name=value, and the value after the equals sign. The
// name is empty if the argument is not a flag.
func cutFlag(arg string) (name, value string, hasValue bool) {
	dashed, isFlag := strings.CutPrefix(arg, "-")
	if !isFlag {
		return "", "", false
	}
	return strings.Cut(strings.TrimPrefix(dashed, "-"), "=")
}
