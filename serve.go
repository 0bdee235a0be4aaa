// serve.go runs the service: what it stands on, its listener, and its orderly end.
package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"sync"
	"syscall"
	"time"

	"app/internal/datadog"
	"app/internal/devpg"
	"app/internal/sandbox"
)

// shutdownLimit is how long running requests may take to end once the service is told to.
const shutdownLimit = 20 * time.Second

// serve runs the service until the context ends.
func serve(ctx context.Context, config *Config, dev, trace bool, std console) error {
	out := &datadog.LogBuffer{Out: std.out}
	defer out.Flush()
	log := slog.New(newLogHandler(out, isTerminal(std.out), config))
	database := "# DATABASE_URL as here" // which may hold a password
	if dev && config.DatabaseURL == "" {
		stop, err := devDatabase(ctx, config, std)
		if err != nil {
			return err
		}
		defer stop()
		database = "export DATABASE_URL='" + config.DatabaseURL + "'"
	}
	config.Sandbox = config.Sandbox || dev
	if err := config.forServe(); err != nil {
		return err
	}
	listener, err := listen(config.Addr)
	if err != nil {
		return err
	}
	defer listener.Close()
	if config.Sandbox {
		stop, err := startSandbox(config)
		if err != nil {
			return err
		}
		defer stop()
	}
	if trace {
		config.telemetry.Print = std.err
	}
	config.telemetry.Log = log
	telemetry, err := config.startTelemetry()
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
		printExports(std, config, database, listener.Addr())
	}
	ctx, cancel := context.WithCancel(ctx)
	var background sync.WaitGroup
	defer background.Wait()
	defer cancel()
	background.Go(func() { app.watch(ctx) })
	background.Go(func() {
		app.awaitDatabase(ctx)
		if !config.ReadOnly {
			app.deliverQueue(ctx)
		}
	})
	handler := newHandler(app, allowed(commands, config.ReadOnly), config.apiTokens)
	return serveUntilDone(ctx, listener, handler, log)
}

// listen opens the service's address.
func listen(addr string) (net.Listener, error) {
	listener, err := net.Listen("tcp", addr)
	switch {
	case errors.Is(err, syscall.EADDRINUSE):
		return nil, fail(misconfigured, "ADDR: %s is taken by another program: stop that one, or set ADDR to another port such as 127.0.0.1:8081", addr)
	case err != nil:
		return nil, fail(misconfigured, "ADDR: the service cannot listen on %s: %w", addr, err)
	}
	return listener, nil
}

// newHTTPServer returns a server with bounds for clients. There is none for a whole answer: the handler
// moves the deadline on while the client takes it.
func newHTTPServer(handler http.Handler, log *slog.Logger) *http.Server {
	return &http.Server{
		Handler:           handler,
		ReadHeaderTimeout: 10 * time.Second,
		IdleTimeout:       2 * time.Minute,
		MaxHeaderBytes:    64 << 10,
		ErrorLog:          slog.NewLogLogger(log.Handler(), slog.LevelWarn),

		DisableGeneralOptionsHandler: true, // which answers without our headers
	}
}

// serveUntilDone answers requests until the context ends and the running ones are finished.
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
	log.Info("stopping: running requests are finished first")
	limit, cancel := context.WithTimeout(context.WithoutCancel(ctx), shutdownLimit)
	defer cancel()
	if err := server.Shutdown(limit); err != nil {
		log.Warn("requests were still running at the end", "error", err)
		return server.Close()
	}
	return nil
}

// awaitDatabase brings the schema up to date as soon as PostgreSQL answers.
func (app *App) awaitDatabase(ctx context.Context) {
	for wait := 100 * time.Millisecond; ; wait = min(2*wait, 5*time.Second) {
		conn, err := app.store.writer(ctx)
		if err == nil {
			conn.Release()
			return
		}
		app.log.WarnContext(ctx, "PostgreSQL is not ready yet", "error", errors.Unwrap(err))
		select {
		case <-time.After(wait):
		case <-ctx.Done():
			return
		}
	}
}

// startSandbox starts a Rollbar look-alike on a loopback port and points the settings at it.
func startSandbox(config *Config) (stop func(), err error) {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, fmt.Errorf("sandbox: %w", err)
	}
	server := &http.Server{Handler: sandbox.New(sandboxItems)}
	go func() { _ = server.Serve(listener) }() // until stop
	config.useSandbox("http://" + listener.Addr().String() + "/api/1")
	return func() { server.Close() }, nil
}

// sandboxItems is how many items the sandbox begins with.
const sandboxItems = 250

// devDatabase gives the settings a private PostgreSQL.
func devDatabase(ctx context.Context, config *Config, std console) (stop func(), err error) {
	fmt.Fprintln(std.err, "starting a private PostgreSQL in .dev …")
	server, err := devpg.Start(ctx, ".dev")
	if err != nil {
		return nil, fail(misconfigured, "%w", err)
	}
	config.DatabaseURL = server.URL()
	return func() { server.Stop() }, nil
}

// printExports prints what another shell needs to work on the same sandbox and database.
func printExports(std console, config *Config, database string, addr net.Addr) {
	fmt.Fprintf(std.err, `
The service: http://%s. For ./app in another shell:

%s
export SANDBOX=false ROLLBAR_URL='%s'
export ROLLBAR_READ_TOKEN='%s' ROLLBAR_WRITE_TOKEN='%s' ROLLBAR_POST_TOKEN='%s'

`, addr, database, config.RollbarURL, config.readToken, config.writeToken, config.postToken)
}
