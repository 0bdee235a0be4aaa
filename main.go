// App is Rollbar over HTTP and the shell, with everything it saw kept in your own PostgreSQL.
//
// A request comes in by one of two doors, handlers.go (HTTP) or cli.go (the command line). Both
// look up a Command in the list below and give it arguments, which commands.go and params.go check
// and convert. The command's function asks rollbar.go and store.go, and what it returns goes out
// by the door that it came in.
package main

import (
	"context"
	"os"
	"os/signal"
	"runtime/debug"
	"syscall"
)

// commands are the operations, in the order of help.
var commands = []*Command{
	whichCmd,
	checkCmd,
	itemsListCmd,
	itemsGetCmd,
	itemsCreateCmd,
	itemsUpdateCmd,
	itemsDeleteCmd,
	itemsOccurrencesCmd,
	itemsSyncCmd,
	reportsListCmd,
	reportsGetCmd,
	reportsCleanCmd,
	reportsDeliverCmd,
}

func init() { validate(commands) }

func main() {
	if os.Getenv("GOMEMLIMIT") == "" {
		debug.SetMemoryLimit(44 << 20) // rather collect more often: it runs beside other services
	}
	if os.Getenv("GOGC") == "" {
		debug.SetGCPercent(200) // but not so often while there is little: a tenth more requests a second
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	context.AfterFunc(ctx, stop) // a second signal ends the program at once
	os.Exit(run(ctx, os.Args[1:], console{os.Stdin, os.Stdout, os.Stderr, ".env"}))
}

// run runs the command line and returns the exit code.
func run(ctx context.Context, args []string, std console) int {
	c := &cli{std: std, commands: commands, serve: serve}
	return c.run(ctx, args)
}
