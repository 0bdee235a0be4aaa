package main

import (
	"cmp"
	"context"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"os"
	"os/signal"
	"sync"
	"syscall"
	"text/template"
	"time"

	"github.com/jackc/pgx/v5"

	"app/internal/async"
	"app/internal/devpg"
	"app/internal/terminal"
)

// serve runs the service until the context ends. With dev it needs no settings: it uses a private PostgreSQL
// and the sandbox.
func serve(ctx context.Context, config *Config, commands []*Command, dev bool, std console) error {
	signal.Notify(make(chan os.Signal, 1), syscall.SIGPIPE) // keep running when nobody reads the log
	log := slog.New(newLogHandler(config.mask().Writer(std.out), terminal.Is(std.out), config))
	slog.SetDefault(log) // net/http prints through the standard logger
	switch {
	case dev && config.DatabaseURL != "":
		db, _ := pgx.ParseConfig(config.DatabaseURL) // the setting has validated it
		fmt.Fprintf(std.err, "using the database %s at %s of -database-url …\n", db.Database, db.Host)
	case dev:
		fmt.Fprintln(std.err, "starting a private PostgreSQL in .dev …")
		server, err := devpg.Start(ctx, ".dev")
		if err != nil {
			return cmp.Or(ctx.Err(), error(fail(misconfigured, "%w", err)))
		}
		defer server.Stop()
		config.DatabaseURL = server.URL
	}
	if dev {
		config.useDev()
	}
	if err := config.checkServe(); err != nil {
		return err
	}
	listener, err := net.Listen("tcp", config.Addr)
	if err != nil {
		return fail(misconfigured, "cannot serve on ADDR: %w; free that address, or set ADDR to another one such as 127.0.0.1:8081", err)
	}
	defer listener.Close()
	telemetry, err := config.startTelemetry(log)
	if err != nil {
		return err
	}
	defer telemetry.Close(5 * time.Second)
	app, err := newApp(config, log, telemetry)
	if err != nil {
		return err
	}
	defer app.Close()
	if dev {
		printExports(std, config, listener.Addr())
	}
	defer app.startBackground(ctx, config.ReadOnly)()
	return serveUntilDone(ctx, listener, newHandler(app, allowed(commands, config.ReadOnly), config), log)
}

// startBackground starts the service's background work, and returns a function that stops it and waits for it
// to finish.
func (app *App) startBackground(ctx context.Context, readOnly bool) (stop func()) {
	ctx, cancel := context.WithCancel(ctx)
	var background sync.WaitGroup
	background.Go(func() { app.watch(ctx) })
	background.Go(func() {
		app.awaitDatabase(ctx)
		background.Go(func() { app.expire(ctx) })
		if !readOnly {
			app.deliverQueue(ctx)
		}
	})
	return func() {
		cancel()
		background.Wait()
	}
}

// awaitDatabase brings the schema up to date as soon as PostgreSQL answers.
func (app *App) awaitDatabase(ctx context.Context) {
	for wait := 100 * time.Millisecond; ; wait = min(2*wait, 5*time.Second) {
		err := app.store.writeSlowly(ctx, func(context.Context, *pgx.Conn) error { return nil })
		if err == nil || ctx.Err() != nil {
			return
		}
		app.log.WarnContext(ctx, "PostgreSQL is not ready yet", "error", err)
		async.Sleep(ctx, wait)
	}
}

// newHTTPServer returns a server with limits for clients. It has no timeout for writing a response: the
// handler extends the write deadline as long as the client reads.
func newHTTPServer(handler http.Handler, log *slog.Logger) *http.Server {
	return &http.Server{
		Handler:           handler,
		ReadHeaderTimeout: 10 * time.Second,
		IdleTimeout:       2 * time.Minute,
		MaxHeaderBytes:    64 << 10,
		ErrorLog:          slog.NewLogLogger(log.Handler(), slog.LevelWarn),

		DisableGeneralOptionsHandler: true, // its responses lack our headers
	}
}

// serveUntilDone serves requests until the context ends, and then waits for the running ones.
func serveUntilDone(ctx context.Context, listener net.Listener, handler http.Handler, log *slog.Logger) error {
	server := newHTTPServer(handler, log)
	log.Info("listening", "address", listener.Addr().String(), "version", buildVersion())
	ended := make(chan error, 1)
	go func() { ended <- server.Serve(listener) }()
	select {
	case err := <-ended:
		return err
	case <-ctx.Done():
	}
	log.Info("stopping: waiting for running requests to finish")
	limit, cancel := context.WithTimeout(context.WithoutCancel(ctx), shutdownLimit)
	defer cancel()
	if err := server.Shutdown(limit); err != nil {
		log.Warn("cutting off requests that are still running", "error", err)
		return server.Close()
	}
	return nil
}

// printExports prints the settings for using this service from another shell, also after a restart, and what
// SDKs and webhooks would send.
func printExports(std console, config *Config, addr net.Addr) {
	values := map[string]string{"Addr": addr.String(), "Webhook": shellToken(config.webhookTokens, "WEBHOOK_TOKEN")}
	if tokens, setting := config.ownTokens(); len(tokens) > 0 {
		values["Setting"], values["Token"] = setting, shellQuote(tokens[0])
	}
	if !config.ReadOnly {
		values["Relay"] = shellToken(config.relayTokens, "RELAY_TOKEN")
	}
	_ = template.Must(template.ParseFS(helpFiles, "help/dev.txt")).Execute(std.err, values)
}

// shellToken returns the shell's expression for the first token in the setting, or devToken itself, which is no secret.
func shellToken(tokens []string, setting string) string {
	if tokens[0] == devToken {
		return devToken
	}
	return "${" + setting + "%%,*}"
}
