// cli.go is the command line's door: it makes a subcommand of every command, takes arguments out
// of flags, and prints results and failures. It is built anew for each run, because a tree of
// ffcli commands holds what it parsed.
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
	"os"
	"slices"
	"strings"
	"time"

	"github.com/peterbourgon/ff/v3/ffcli"

	"app/internal/datadog"
	"app/internal/rawjson"
)

// A cli is one run of the command line.
type cli struct {
	std      console
	commands []*Command
	settings []string // the settings given as flags
	refused  error    // by a flag
	output   string   // the format asked for, or ""
	exit     int      // of a run without an error

	operations map[*ffcli.Command]*Command // by their places in the tree
}

// run runs the command line and returns the exit code.
func run(ctx context.Context, args []string, std console) int {
	c := &cli{std: std, commands: allowed(commands, isReadOnly(args, std.envFile)), output: outputOf(args), operations: map[*ffcli.Command]*Command{}}
	root := c.tree()
	arranged, selected, err := arrange(root, args)
	if err == nil {
		err = c.parse(root, arranged)
	}
	ran := err == nil
	if ran {
		err = root.Run(ctx)
	}
	switch {
	case err == nil:
		return c.exit
	case errors.Is(err, flag.ErrHelp):
		fmt.Fprint(std.out, selected.UsageFunc(selected))
		return 0
	case errors.Is(err, errUsage):
		fmt.Fprint(std.err, selected.UsageFunc(selected))
		return invalid.exit
	}
	code := c.fail(err)
	if !ran {
		c.noteRefused(ctx, c.operations[selected], err)
	}
	return code
}

// noteRefused tells Datadog, where it is set up, of an operation whose flags were refused.
func (c *cli) noteRefused(ctx context.Context, operation *Command, err error) {
	config, configErr := loadConfig(nil, c.std.envFile)
	if operation == nil || configErr != nil {
		return
	}
	config.telemetry.Log = c.log(config)
	telemetry, telemetryErr := config.startTelemetry()
	if telemetryErr != nil {
		return
	}
	_, finish := startCommand(ctx, telemetry, operation)
	finish(nil, err)
	telemetry.Close(time.Second)
}

// isReadOnly looks ahead for READ_ONLY, on which depends which subcommands there are. What is wrong
// with any setting is reported later, by those who need them.
func isReadOnly(args []string, envFile string) bool {
	given := slices.DeleteFunc(slices.Clone(args), func(arg string) bool {
		name, _, _ := strings.Cut(strings.TrimLeft(arg, "-"), "=")
		return !strings.HasPrefix(arg, "-") || name != "read-only"
	})
	config, _ := loadSettings(given, envFile, "read-only")
	return config.ReadOnly
}

// outputOf looks ahead for the format of results, in which also flags that are wrong are reported.
func outputOf(args []string) string {
	for i, arg := range args {
		name, format, hasValue := strings.Cut(strings.TrimLeft(arg, "-"), "=")
		if !strings.HasPrefix(arg, "-") || name != "o" && name != "output" {
			continue
		}
		if !hasValue && i+1 < len(args) {
			format = args[i+1]
		}
		return format
	}
	return ""
}

// parse reads the flags. Package flag quotes the values that a flag refuses, which may be secrets, so
// the flags here refuse nothing themselves but note it.
func (c *cli) parse(root *ffcli.Command, args []string) error {
	err := root.Parse(args)
	if c.refused != nil {
		err = c.refused
	}
	if err != nil {
		return fail(invalid, "%w", err)
	}
	return nil
}

// refuse notes the first flag whose value is bad.
func (c *cli) refuse(err error) { c.refused = cmp.Or(c.refused, err) }

// errUsage is the error of a command that only has subcommands.
var errUsage = errors.New("a subcommand is missing")

// fail prints the error, as one line or, where JSON was asked for, as a problem, and returns the
// exit code.
func (c *cli) fail(err error) int {
	f := failureOf(err).onCommandLine()
	if f.err != nil && !strings.Contains(f.detail, f.err.Error()) { // here, and not on a server
		f.detail += ": " + f.err.Error() // the command line runs on behalf of its user
	}
	if unwritten := (*fs.PathError)(nil); f.kind == internal && errors.As(err, &unwritten) && unwritten.Op == "write" {
		f.detail = "the result cannot be written: " + unwritten.Err.Error()
	}
	if c.output == "json" || c.output == "ndjson" {
		_ = writeResult(c.std.err, f.problem(rand.Text()))
	} else {
		fmt.Fprintln(c.std.err, "app:", strings.Join(strings.Fields(f.detail), " ")) // one line
	}
	return f.kind.exit
}

// tree makes the subcommands of the registry and those that exist only here.
func (c *cli) tree() *ffcli.Command {
	root := c.group("app", "app COMMAND [flags] [arguments]", c.rootHelp)
	nouns := map[string]*ffcli.Command{}
	for _, command := range c.commands {
		words := command.words()
		parent := root
		if len(words) == 2 {
			if nouns[words[0]] == nil {
				nouns[words[0]] = c.group(words[0], "app "+words[0]+" COMMAND [flags] [arguments]", func() string { return c.nounHelp(words[0]) })
				root.Subcommands = append(root.Subcommands, nouns[words[0]])
			}
			parent = nouns[words[0]]
		}
		parent.Subcommands = append(parent.Subcommands, c.subcommand(command))
	}
	root.Subcommands = append(root.Subcommands, c.serveCommand(), c.versionCommand(), c.completionCommand(root))
	return root
}

// flagSet returns flags for one subcommand. They print nothing themselves: run does, once.
func (c *cli) flagSet(name string) *flag.FlagSet {
	fs := flag.NewFlagSet(name, flag.ContinueOnError)
	fs.SetOutput(io.Discard)
	for _, s := range new(Config).settings() {
		fs.Var(&settingFlag{s, func(value string) error {
			if err := s.set(value); err != nil {
				c.refuse(fmt.Errorf("-%s %w", s.name, err))
			}
			c.settings = append(c.settings, "-"+s.name+"="+value)
			return nil
		}}, s.name, s.help)
	}
	return fs
}

// group is a command that only has subcommands.
func (c *cli) group(name, usage string, help func() string) *ffcli.Command {
	return &ffcli.Command{
		Name:      name,
		FlagSet:   c.flagSet(name),
		UsageFunc: func(*ffcli.Command) string { return "Usage: " + usage + "\n\n" + help() },
		Exec:      func(context.Context, []string) error { return errUsage },
	}
}

// subcommand makes a subcommand of a command.
func (c *cli) subcommand(command *Command) *ffcli.Command {
	words := command.words()
	given := &givenFlags{values: map[string][]literal{}}
	fs := c.flagSet(command.Name)
	for _, p := range command.Run.params {
		if p.in != inPath {
			fs.Var(&paramFlag{p, given}, flagName(p), p.help)
		}
	}
	fs.Func("output", "table, json or ndjson", c.setOutput)
	fs.Func("o", "short for -output", c.setOutput)
	asCurl := fs.Bool("as-curl", false, "print the request instead of making it")
	yes := new(bool)
	if command.Confirm != "" {
		fs.BoolVar(yes, "yes", false, "do not ask")
	}
	sub := &ffcli.Command{
		Name:      words[len(words)-1],
		FlagSet:   fs,
		UsageFunc: func(*ffcli.Command) string { return commandHelp(command) },
		Exec: func(ctx context.Context, positional []string) error {
			if *asCurl {
				return c.printCurl(ctx, command, given, positional)
			}
			return c.execute(ctx, command, given, positional, *yes)
		},
	}
	c.operations[sub] = command
	return sub
}

// flagName is the name of a parameter's flag: code-version.
func flagName(p *param) string { return strings.ReplaceAll(p.name, "_", "-") }

// label is how the command line's user knows a parameter: ID, -code-version.
func label(p *param) string {
	if p.in == inPath {
		return strings.ToUpper(p.name)
	}
	return "-" + flagName(p)
}

// givenFlags are the values of a subcommand's flags.
type givenFlags struct {
	values map[string][]literal
	files  []string // of flags that name a file with the JSON body
}

// A paramFlag is a parameter as a flag. It takes any text: the registry checks it.
type paramFlag struct {
	p     *param
	given *givenFlags
}

func (f *paramFlag) String() string   { return "" }
func (f *paramFlag) IsBoolFlag() bool { return f.p.kind == kindBool }

func (f *paramFlag) Set(text string) error {
	if f.p.file {
		f.given.files = append(f.given.files, text)
		return nil
	}
	f.given.values[f.p.name] = append(f.given.values[f.p.name], literal{text: text})
	return nil
}

var outputFormats = []string{"table", "json", "ndjson"}

// setOutput sets the format of results.
func (c *cli) setOutput(format string) error {
	if !slices.Contains(outputFormats, format) {
		c.refuse(fmt.Errorf("-output must be one of %s", strings.Join(outputFormats, ", ")))
	}
	c.output = format
	return nil
}

// arguments are the values of the flags and the positional arguments.
func (c *cli) arguments(ctx context.Context, command *Command, given *givenFlags, positional []string) (arguments, error) {
	args := arguments{given.values, label}
	path := command.names(inPath)
	if len(positional) > len(path) {
		return args, fail(invalid, "unexpected argument %q", positional[len(path)])
	}
	for i, text := range positional {
		args.values[path[i]] = []literal{{text: text}}
	}
	valid := command.names(inBody)
	for _, name := range given.files {
		body, err := c.readBody(ctx, name)
		if err != nil {
			return args, err
		}
		for member, value := range body {
			if !slices.Contains(valid, member) {
				return args, fail(invalid, "%s: %s", name, unknown("field", member, valid))
			}
			args.values[member] = append(args.values[member], literal{text: string(value), json: true})
		}
	}
	return args, nil
}

// readBody reads a JSON body from a file, or from standard input where the name is -.
func (c *cli) readBody(ctx context.Context, name string) (map[string]json.RawMessage, error) {
	source := c.std.in
	if name != "-" {
		file, err := os.Open(name)
		if err != nil {
			return nil, fail(invalid, "the file cannot be read: %w", err)
		}
		defer file.Close()
		source = file
	}
	text, err := interruptible(ctx, func() ([]byte, error) { return io.ReadAll(io.LimitReader(source, maxBody+1)) })
	if errors.Is(err, context.Canceled) {
		return nil, err
	}
	if err != nil {
		return nil, fail(invalid, "%s cannot be read: %w", name, err)
	}
	if len(text) > maxBody {
		return nil, fail(tooLarge, "%s is larger than %d bytes", name, maxBody)
	}
	body, err := rawjson.Object(text)
	if err != nil {
		return nil, fail(invalid, "%s cannot be used: %w", name, err)
	}
	return body, nil
}

// execute runs one operation and prints its result. What is wrong with the arguments is said before
// what is wrong with the settings.
func (c *cli) execute(ctx context.Context, command *Command, given *givenFlags, positional []string, yes bool) error {
	args, err := c.arguments(ctx, command, given, positional)
	var operation prepared
	if err == nil {
		operation, err = command.Run.prepare(args)
	}
	config, configErr := loadConfig(c.settings, c.std.envFile)
	if configErr != nil {
		return cmp.Or(err, configErr)
	}
	if config.ReadOnly && command.Changes { // whatever isReadOnly has seen
		return cmp.Or(err, error(fail(misconfigured, "READ_ONLY is true, and %s changes something", strings.Join(command.words(), " "))))
	}
	if err == nil && command.Confirm != "" && !yes {
		err = c.confirm(ctx, command.Confirm)
	}
	config.telemetry.Log = c.log(config)
	telemetry, telemetryErr := config.startTelemetry()
	if telemetryErr != nil {
		return cmp.Or(err, telemetryErr)
	}
	defer telemetry.Close(time.Second)
	if c.output == "" && isTerminal(c.std.out) {
		c.output = "table"
	}
	progress := &progressLine{out: c.std.err}
	call := &Call{stream: c.output == "ndjson"}
	if isTerminal(c.std.err) {
		call.progress = progress.show
		if isTerminal(c.std.out) {
			c.std.out = resultWriter{c.std.out, progress}
		}
	}
	ctx, finish := startCommand(withCall(ctx, call), telemetry, command)
	var value any
	switch {
	case err != nil:
	case config.AppURL != "":
		value, err = c.ask(ctx, config, command, args)
	default:
		var app *App
		if app, err = c.newApp(config, telemetry); err == nil {
			defer app.Close()
			value, err = operation(ctx, app)
		}
	}
	if err == nil {
		err = c.print(command, value)
	}
	finish(value, err)
	progress.end()
	if err != nil {
		return err
	}
	if call.unstored != "" {
		fmt.Fprintln(c.std.err, "app: nothing is stored:", call.unstored)
	}
	c.exit = outcomeOf(value).exit
	return nil
}

// printCurl prints the request that would be made, as a line for a shell.
func (c *cli) printCurl(ctx context.Context, command *Command, given *givenFlags, positional []string) error {
	args, err := c.arguments(ctx, command, given, positional)
	if err == nil {
		_, err = command.Run.prepare(args)
	}
	config, configErr := loadConfig(c.settings, c.std.envFile)
	if err = cmp.Or(err, configErr); err != nil {
		return err
	}
	line, err := asCurl(ctx, config, command, args, c.output == "ndjson")
	if err == nil {
		_, err = fmt.Fprintln(c.std.out, line)
	}
	return err
}

// newApp makes what an operation works with, when it runs here.
func (c *cli) newApp(config *Config, telemetry *datadog.Client) (*App, error) {
	if config.Sandbox {
		if _, err := startSandbox(config); err != nil { // it ends with the program
			return nil, err
		}
	}
	return newApp(config, c.log(config), telemetry)
}

// ask runs an operation on the server at APP_URL.
func (c *cli) ask(ctx context.Context, config *Config, command *Command, args arguments) (any, error) {
	for _, name := range command.names(inFlag) { // -all
		if values := args.values[name]; len(values) > 0 && values[0].text == "true" {
			return askServerForAll(ctx, config, command, args)
		}
	}
	return askServer(ctx, config, command, args)
}

// log is where operations log to: errors go to the user anyhow.
func (c *cli) log(config *Config) *slog.Logger {
	if config.LogLevel > slog.LevelDebug {
		return slog.New(slog.DiscardHandler)
	}
	return slog.New(slog.NewTextHandler(c.std.err, &slog.HandlerOptions{Level: config.LogLevel}))
}

// serveCommand is the subcommand that runs the service.
func (c *cli) serveCommand() *ffcli.Command {
	fs := c.flagSet("serve")
	dev := fs.Bool("dev", false, "try it: a private PostgreSQL and a sandbox instead of Rollbar")
	trace := fs.Bool("trace", false, "print where each request's time went")
	return &ffcli.Command{
		Name:      "serve",
		FlagSet:   fs,
		UsageFunc: func(*ffcli.Command) string { return serveHelp() },
		Exec: func(ctx context.Context, positional []string) error {
			if len(positional) > 0 {
				return fail(invalid, "unexpected argument %q", positional[0])
			}
			config, err := loadConfig(c.settings, c.std.envFile)
			if err != nil {
				return err
			}
			return serve(ctx, config, *dev, *trace, c.std)
		},
	}
}

// versionCommand is the subcommand that prints the version alone.
func (c *cli) versionCommand() *ffcli.Command {
	return &ffcli.Command{
		Name:      "version",
		FlagSet:   c.flagSet("version"),
		UsageFunc: func(*ffcli.Command) string { return "Usage: app version\n\nPrint the version.\n" },
		Exec: func(_ context.Context, positional []string) error {
			if len(positional) > 0 {
				return fail(invalid, "unexpected argument %q", positional[0])
			}
			_, err := fmt.Fprintln(c.std.out, buildVersion())
			return err
		},
	}
}

// completionCommand is the subcommand that prints a script for a shell.
func (c *cli) completionCommand(root *ffcli.Command) *ffcli.Command {
	usage := "completion " + strings.Join(shells(), "|")
	return &ffcli.Command{
		Name:      "completion",
		FlagSet:   c.flagSet("completion"),
		UsageFunc: func(*ffcli.Command) string { return "Usage: app " + usage + "\n\n" + completionHelp },
		Exec: func(_ context.Context, positional []string) error {
			if len(positional) != 1 {
				return fail(invalid, "name one shell: app %s", usage)
			}
			script := completionScripts[positional[0]]
			if script == nil {
				return fail(invalid, "%s", unknown("shell", positional[0], shells()))
			}
			_, err := io.WriteString(c.std.out, script(completions(root, "")))
			return err
		},
	}
}

// arrange puts the flags of each level before its arguments, because package flag stops at the
// first argument, and returns the command that the words lead to. It refuses unknown flags and
// subcommands with the names of the valid ones. What comes behind -- is an argument.
func arrange(c *ffcli.Command, args []string) (arranged []string, selected *ffcli.Command, err error) {
	var words []string
	for len(args) > 0 {
		arg := args[0]
		args = args[1:]
		if arg == "--" {
			words = append(words, args...)
			break
		}
		if arg == "-" || !strings.HasPrefix(arg, "-") {
			if len(c.Subcommands) == 0 {
				words = append(words, arg)
				continue
			}
			sub := child(c, arg)
			if sub == nil {
				return nil, c, fail(invalid, "%s", unknown("command", arg, childNames(c)))
			}
			rest, selected, err := arrange(sub, args)
			return append(append(arranged, arg), rest...), selected, err
		}
		flags, rest, err := takeFlag(c.FlagSet, arg, args)
		if err != nil {
			return nil, c, err
		}
		arranged, args = append(arranged, flags...), rest
	}
	return append(append(arranged, "--"), words...), c, nil
}

// takeFlag returns a flag with its value, and the arguments behind them.
func takeFlag(fs *flag.FlagSet, arg string, args []string) (taken, rest []string, err error) {
	name, _, hasValue := strings.Cut(strings.TrimPrefix(strings.TrimPrefix(arg, "-"), "-"), "=")
	if name == "h" || name == "help" {
		return nil, nil, flag.ErrHelp
	}
	f := fs.Lookup(name)
	if f == nil {
		var valid []string
		fs.VisitAll(func(f *flag.Flag) {
			if _, isSetting := f.Value.(*settingFlag); !isSetting || nearest(name, []string{f.Name}) != "" {
				valid = append(valid, "-"+f.Name)
			}
		})
		return nil, nil, fail(invalid, "%s", unknown("flag", "-"+name, append(valid, "the settings that app -h names")))
	}
	isBool, ok := f.Value.(interface{ IsBoolFlag() bool })
	switch {
	case hasValue || ok && isBool.IsBoolFlag():
		return []string{arg}, args, nil
	case len(args) == 0:
		return nil, nil, fail(invalid, "the flag -%s needs a value: %s", name, f.Usage)
	}
	return []string{arg, args[0]}, args[1:], nil
}

func child(c *ffcli.Command, name string) *ffcli.Command {
	for _, sub := range c.Subcommands {
		if strings.EqualFold(sub.Name, name) {
			return sub
		}
	}
	return nil
}

func childNames(c *ffcli.Command) []string {
	var names []string
	for _, sub := range c.Subcommands {
		names = append(names, sub.Name)
	}
	return names
}
