// App is Rollbar over HTTP and the shell, with every state of every item kept in your own PostgreSQL.
//
// Run it next to your services. Colleagues and scripts read, create, update and delete Rollbar's items through
// one REST API and one command line, without holding Rollbar's tokens. Each state of an item that passes
// through becomes a report in PostgreSQL, and occurrences created while Rollbar is down are delivered later.
//
// Each operation is a Command in the list commands. Every surface reads that list, so an operation's route,
// subcommand, help and OpenAPI description all follow from its Command.
package main

import (
	"context"
	"os"
	"os/signal"
	"runtime/debug"
	"syscall"
)

// commands lists the operations in the order in which help shows them.
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
	reportsSummaryCmd,
	occurrencesListCmd,
	occurrencesGetCmd,
	occurrencesSyncCmd,
	occurrencesCleanCmd,
}

func main() {
	if os.Getenv("GOMEMLIMIT") == "" {
		debug.SetMemoryLimit(usualHeap)
	}
	if os.Getenv("GOGC") == "" {
		debug.SetGCPercent(200) // 10% more requests per second while there is little garbage
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	context.AfterFunc(ctx, stop) // a second signal ends the program at once
	os.Exit(run(ctx, os.Args[1:], console{os.Stdin, os.Stdout, os.Stderr, ".env"}))
}

// run runs the command line and returns the exit code.
func run(ctx context.Context, args []string, std console) int {
	return (&cli{std: std, commands: commands, serve: serve}).run(ctx, args)
}
