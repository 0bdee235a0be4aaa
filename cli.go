// cli.go is the command line: it makes a subcommand of every command, takes arguments out of flags,
// runs operations and reports failures. The tree of subcommands is built for each run, because it holds
// what was parsed.
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

	"app/internal/rawjson"
	"app/internal/secrets"
	"app/internal/spelling"
)

// A cli is one run of the command line.
type cli struct {
	std      console
	commands []*Command
	leftOut  []*Command // by READ_ONLY
	serve    func(ctx context.Context, config *Config, commands []*Command, dev bool, std console) error

	output   string   // the format asked for, or ""
	fields   []string // the columns asked for, or nil
	settings []string // the settings given as flags: -name=value
	mask     *secrets.Mask
	refused  error      // the first thing wrong with the flags, or nil
	table    *textTable // that shows the result
	exit     int        // the exit code of a run without an error
}

// run runs the command line and returns the exit code.
func (c *cli) run(ctx context.Context, args []string) int {
	readOnly, output := lookAhead(args, c.std.envFile)
	c.commands, c.leftOut, c.output = allowed(c.commands, readOnly), c.commands, output
	root := c.tree()
	arranged, selected, err := c.arrange(root, customary(args))
	if errors.Is(err, flag.ErrHelp) {
		if _, err = fmt.Fprint(c.std.out, selected.LongHelp); err == nil {
			return 0
		}
		return c.fail(err)
	}
	c.refuse(err)
	if err := root.ParseAndRun(ctx, arranged); err != nil {
		if c.mask == nil { // the settings were not needed
			config, _ := loadConfig(c.settings, c.std.envFile)
			c.mask = config.mask()
		}
		return c.fail(err)
	}
	return c.exit
}

// customary returns the arguments with other programs' words for help and version in our own.
func customary(args []string) []string {
	switch {
	case len(args) > 0 && args[0] == "help":
		return append(slices.Clone(args[1:]), "-h")
	case len(args) > 0 && (args[0] == "-version" || args[0] == "--version"):
		return append([]string{"version"}, args[1:]...)
	}
	return args
}

// lookAhead finds two flags before all are parsed, and whatever is wrong with others: READ_ONLY decides
// which subcommands exist, and the output format how errors are printed.
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

// loadConfig loads the settings and reports misspelt ones. From then on standard error shows none of their
// secrets.
func (c *cli) loadConfig() (*Config, error) {
	config, err := loadConfig(c.settings, c.std.envFile)
	c.mask = config.mask()
	for _, remark := range config.misspelt {
		fmt.Fprintln(c.stderr(), "app:", remark)
	}
	return config, err
}

func (c *cli) stderr() io.Writer { return c.mask.Writer(c.safe(c.std.err)) }

// refuse notes an error of the flags. They return none themselves, because package flag quotes the
// values in its messages, and a value may be a secret.
func (c *cli) refuse(err error) { c.refused = cmp.Or(c.refused, err) }

// fail prints the error, as a problem if JSON was asked for and otherwise as one line, and returns the
// exit code.
func (c *cli) fail(err error) int {
	f := failureWithCause(err)
	var unwritten *fs.PathError
	if f.kind == internal && errors.As(err, &unwritten) && unwritten.Op == "write" {
		f.detail = "cannot write the result: " + unwritten.Err.Error()
	}
	if c.output == "json" || c.output == "ndjson" {
		_ = writeResult(c.stderr(), f.problem(rand.Text()))
	} else {
		fmt.Fprintln(c.stderr(), "app:", strings.Join(strings.Fields(f.detail), " "))
	}
	return f.kind.exit
}

// failureWithCause returns the failure as the command line reports it: unlike a server's caller, its user
// may see the cause.
func failureWithCause(err error) *Failure {
	f := failureOf(err).onCommandLine()
	if f.err != nil && f.kind != interrupted && !strings.Contains(f.detail, f.err.Error()) {
		f.detail += ": " + f.err.Error()
	}
	return f
}

// tree makes the subcommands of the registry and those that exist only on the command line.
func (c *cli) tree() *ffcli.Command {
	root := c.group("app", c.rootHelp())
	for _, command := range c.commands {
		parent, name := root, command.Name
		if noun, verb, ok := strings.Cut(command.Name, "."); ok {
			parent, name = child(root, noun), verb
			if parent == nil {
				parent = c.group(noun, c.nounHelp(noun))
				root.Subcommands = append(root.Subcommands, parent)
			}
		}
		parent.Subcommands = append(parent.Subcommands, c.operation(name, command))
	}
	root.Subcommands = append(root.Subcommands, c.serveCommand(), c.simple("mcp", mcpHelp, c.flagSet("mcp"), c.runMCP), c.versionCommand(), c.completionCommand(root))
	return root
}

// group makes a subcommand that only has subcommands. Without one it prints its help.
func (c *cli) group(name, help string) *ffcli.Command {
	return &ffcli.Command{
		Name:     name,
		LongHelp: help,
		FlagSet:  c.flagSet(name),
		Exec: func(context.Context, []string) error {
			if c.refused == nil {
				fmt.Fprint(c.std.err, help)
				c.exit = invalid.exit
			}
			return c.refused
		},
	}
}

// simple makes a subcommand that is no operation and takes no arguments.
func (c *cli) simple(name, help string, flags *flag.FlagSet, run func(context.Context) error) *ffcli.Command {
	return &ffcli.Command{
		Name:     name,
		LongHelp: help,
		FlagSet:  flags,
		Exec: func(ctx context.Context, args []string) error {
			if len(args) > 0 {
				c.refuse(fail(invalid, "unexpected argument %q", args[0]))
			}
			if c.refused != nil {
				return c.refused
			}
			return run(ctx)
		},
	}
}

func (c *cli) serveCommand() *ffcli.Command {
	flags := c.flagSet("serve")
	dev := c.boolFlag(flags, "dev", "try the service: use a private PostgreSQL, kept in .dev, and a fake Rollbar")
	return c.simple("serve", serveHelp(flags), flags, func(ctx context.Context) error {
		config, err := c.loadConfig()
		if err != nil {
			return err
		}
		isGiven := func(flag string) bool { return strings.HasPrefix(flag, "-database-url=") }
		if *dev && !slices.ContainsFunc(c.settings, isGiven) { // the environment's database is not for trying things
			config.DatabaseURL, config.DatabaseReadURL = "", ""
		}
		return c.serve(ctx, config, c.commands, *dev, c.std)
	})
}

func (c *cli) versionCommand() *ffcli.Command {
	return c.simple("version", versionHelp, c.flagSet("version"), func(context.Context) error {
		_, err := fmt.Fprintln(c.std.out, buildVersion())
		return err
	})
}

// flagSet returns a set of flags that holds the settings.
func (c *cli) flagSet(name string) *flag.FlagSet {
	flags := flag.NewFlagSet(name, flag.ContinueOnError)
	flags.SetOutput(io.Discard)
	for _, s := range new(Config).settings() {
		flags.Var(&settingFlag{s, func(value string) error {
			if err := s.parse(value); err != nil {
				c.refuse(fail(invalid, "-%s %w", s.name, err))
				return nil
			}
			c.settings = append(c.settings, "-"+s.name+"="+value)
			return nil
		}}, s.name, s.help)
	}
	return flags
}

func (c *cli) boolFlag(flags *flag.FlagSet, name, help string) *bool {
	value := new(bool)
	flags.BoolFunc(name, help, func(text string) error {
		if err := parsed(value, parseBool)(text); err != nil {
			c.refuse(fail(invalid, "-%s %w", name, err))
		}
		return nil
	})
	return value
}

var outputFormats = []string{"table", "json", "ndjson", "csv"}

func (c *cli) setOutput(format string) error {
	if !slices.Contains(outputFormats, format) {
		c.refuse(fail(invalid, "-output must be one of %s", strings.Join(outputFormats, ", ")))
	}
	c.output = format
	return nil
}

// An invocation is an operation with the flags and arguments given to it.
type invocation struct {
	command *Command
	args    arguments
	files   []string // named by flags; each holds a JSON body
	asCurl  *bool
	yes     *bool
}

// operation makes the subcommand of a command.
func (c *cli) operation(name string, command *Command) *ffcli.Command {
	in := &invocation{command: command, args: arguments{map[string][]literal{}, label}, yes: new(bool)}
	flags := c.flagSet(command.Name)
	for _, p := range command.Run.params {
		if p.in != inPath {
			flags.Var(&paramFlag{p, in}, flagName(p), p.help)
		}
	}
	flags.Func("output", outputHelp, c.setOutput)
	flags.Func("o", "short for -output", c.setOutput)
	if command.hasFields() {
		flags.Func("fields", fieldsHelp, c.setFields)
	}
	in.asCurl = c.boolFlag(flags, "as-curl", asCurlHelp)
	if command.Confirm != nil {
		in.yes = c.boolFlag(flags, "yes", yesHelp)
	}
	return &ffcli.Command{
		Name:     name,
		LongHelp: commandHelp(command),
		FlagSet:  flags,
		Exec: func(ctx context.Context, positional []string) error {
			return c.execute(ctx, in, positional)
		},
	}
}

// flagName is the name of a parameter's flag: code-version.
func flagName(p *param) string { return strings.ReplaceAll(p.name, "_", "-") }

// label names a parameter in messages: ID, -code-version.
func label(p *param) string {
	if p.in == inPath {
		return strings.ToUpper(p.name)
	}
	return "-" + flagName(p)
}

// A paramFlag is a parameter as a flag. It takes any text: the registry checks it later.
type paramFlag struct {
	*param
	in *invocation
}

func (f *paramFlag) String() string   { return "" }
func (f *paramFlag) IsBoolFlag() bool { return f.kind == kindBool }

func (f *paramFlag) Set(text string) error {
	if f.file {
		f.in.files = append(f.in.files, text)
	} else {
		f.in.args.values[f.name] = append(f.in.args.values[f.name], literal{text: text})
	}
	return nil
}

// execute runs an operation and prints its result. An error in the arguments is reported before one in
// the settings, and is counted as the operation's.
func (c *cli) execute(ctx context.Context, in *invocation, positional []string) error {
	operation, err := c.prepare(ctx, in, positional)
	config, configErr := c.loadConfig()
	switch {
	case configErr != nil:
		return cmp.Or(err, configErr)
	case err == nil && *in.asCurl:
		return c.printCurl(ctx, config, in)
	case err == nil && in.command.Confirm != nil && !*in.yes:
		err = c.confirm(ctx, config, in)
	}
	config.telemetry.Log = c.log(config)
	slog.SetDefault(config.telemetry.Log) // net/http prints through the standard logger
	telemetry, telemetryErr := config.startTelemetry()
	if telemetryErr != nil {
		return cmp.Or(err, telemetryErr)
	}
	defer telemetry.Close(time.Second)
	call, endProgress := c.newCall()
	ctx, finish := startCommand(withCall(ctx, call), telemetry, in.command, "cli")
	var value any
	switch {
	case err != nil:
	case config.AppURL != "":
		value, err = runRemotely(ctx, config, in.command, in.args)
	default:
		var app *App
		if app, err = newApp(config, config.telemetry.Log, telemetry); err == nil {
			defer app.Close()
			value, err = operation(ctx, app)
		}
	}
	if err == nil {
		err = c.print(in.command, value)
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

// prepare adds the positional arguments and the files to the flags, and checks them all.
func (c *cli) prepare(ctx context.Context, in *invocation, positional []string) (prepared, error) {
	if c.refused != nil {
		return nil, c.refused
	}
	if err := c.checkOutput(in.command); err != nil {
		return nil, err
	}
	path := in.command.names(inPath)
	if len(positional) > len(path) {
		return nil, fail(invalid, "unexpected argument %q", positional[len(path)])
	}
	for i, text := range positional {
		in.args.values[path[i]] = []literal{{text: text}}
	}
	valid := in.command.names(inBody)
	for _, name := range in.files {
		body, err := c.readBody(ctx, name)
		if err != nil {
			return nil, err
		}
		for member, value := range body {
			if !slices.Contains(valid, member) {
				return nil, fail(invalid, "%s: %s", name, unknown("field", member, valid))
			}
			in.args.values[member] = append(in.args.values[member], literal{text: string(value), json: true})
		}
	}
	return in.command.Run.prepare(in.args)
}

// readBody reads a JSON body from a file, or from standard input if the name is "-".
func (c *cli) readBody(ctx context.Context, name string) (map[string]json.RawMessage, error) {
	text, err := interruptible(ctx, func() ([]byte, error) {
		source := c.std.in
		if name != "-" {
			file, err := os.Open(name)
			if err != nil {
				return nil, err
			}
			defer file.Close()
			source = file
		}
		return io.ReadAll(io.LimitReader(source, maxBody+1))
	})
	if errors.Is(err, context.Canceled) {
		return nil, err
	}
	if err != nil {
		return nil, fail(invalid, "cannot read the JSON body: %w", err)
	}
	if len(text) > maxBody {
		return nil, fail(tooLarge, "%s is larger than %d bytes", name, maxBody)
	}
	body, err := rawjson.Object(text)
	if err != nil {
		return nil, fail(invalid, "%s is not valid: %w", name, err)
	}
	return body, nil
}

// newCall returns the call of an operation, which shows its progress on a terminal until end is called
// or the result is printed.
func (c *cli) newCall() (call *Call, end func()) {
	isTable := isTerminal(c.std.out)
	if c.output == "" && isTable {
		c.output = "table"
	}
	progress := &progressLine{out: c.std.err, began: time.Now()}
	c.table = &textTable{out: c.std.out, width: terminalWidth(c.std.out), isColoured: isTable && os.Getenv("NO_COLOR") == ""}
	c.std.out = c.safe(c.std.out)
	call = &Call{stream: c.output == "ndjson"}
	if isTerminal(c.std.err) {
		call.progress = progress.show
		if isTable {
			c.std.out, c.table.out = resultWriter{c.std.out, progress}, resultWriter{c.table.out, progress}
		}
	}
	return call, progress.end
}

// log returns the log of operations, which is silent above the level debug: errors are printed anyway.
func (c *cli) log(config *Config) *slog.Logger {
	if config.LogLevel > slog.LevelDebug {
		return slog.New(slog.DiscardHandler)
	}
	return slog.New(slog.NewTextHandler(c.stderr(), &slog.HandlerOptions{Level: config.LogLevel}))
}

// arrange puts the flags of each level before its arguments, because package flag stops at the first
// argument, and returns the subcommand that the words lead to. It refuses unknown flags and subcommands,
// naming the valid ones, and then returns what came before. All that follows -- is an argument.
func (c *cli) arrange(group *ffcli.Command, args []string) (arranged []string, selected *ffcli.Command, err error) {
	var words []string
	for len(args) > 0 {
		arg := args[0]
		args = args[1:]
		name, _, hasValue := cutFlag(arg)
		switch {
		case arg == "--":
			words, args = append(words, args...), nil
		case name == "" && len(group.Subcommands) == 0:
			words = append(words, arg)
		case name == "":
			sub := child(group, arg)
			if sub == nil {
				return arranged, group, c.unknownCommand(group, arg)
			}
			rest, selected, err := c.arrange(sub, args)
			return slices.Concat(arranged, []string{arg}, rest), selected, err
		default:
			needsValue, err := checkFlag(group.FlagSet, name, hasValue || len(args) > 0)
			if err != nil {
				return arranged, group, err
			}
			arranged = append(arranged, arg)
			if needsValue && !hasValue {
				arranged, args = append(arranged, args[0]), args[1:]
			}
		}
	}
	return append(append(arranged, "--"), words...), group, nil
}

// unknownCommand returns the failure of a word that is no subcommand of the group.
func (c *cli) unknownCommand(group *ffcli.Command, word string) error {
	isIt := func(o *Command) bool { return o.Name == group.Name+"."+word }
	if slices.ContainsFunc(c.leftOut, isIt) {
		return fail(invalid, "%s %s is left out by READ_ONLY, since it changes something", group.Name, word)
	}
	return fail(invalid, "%s", unknown("command", word, childNames(group)))
}

// cutFlag returns the name of a flag such as -name or --name=value, and the value behind the equals
// sign. The name is empty if the argument is not a flag.
func cutFlag(arg string) (name, value string, hasValue bool) {
	dashed, isFlag := strings.CutPrefix(arg, "-")
	if !isFlag {
		return "", "", false
	}
	return strings.Cut(strings.TrimPrefix(dashed, "-"), "=")
}

// checkFlag reports whether a flag needs a value. It refuses an unknown flag, and one that needs a value
// where none can follow.
func checkFlag(flags *flag.FlagSet, name string, valueFollows bool) (needsValue bool, err error) {
	if name == "h" || name == "help" {
		return false, flag.ErrHelp
	}
	f := flags.Lookup(name)
	if f == nil {
		var valid []string
		flags.VisitAll(func(f *flag.Flag) {
			if _, isSetting := f.Value.(*settingFlag); !isSetting || spelling.Nearest(name, []string{f.Name}) != "" {
				valid = append(valid, "-"+f.Name)
			}
		})
		return false, fail(invalid, "%s", unknown("flag", "-"+name, append(valid, "and the settings that app -h lists")))
	}
	if b, ok := f.Value.(interface{ IsBoolFlag() bool }); ok && b.IsBoolFlag() {
		return false, nil
	}
	if !valueFollows {
		return true, fail(invalid, "the flag -%s needs a value: %s", name, f.Usage)
	}
	return true, nil
}

// child returns the subcommand with the name, or nil.
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
