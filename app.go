package main

import (
	"context"
	"log/slog"
	"runtime/debug"
	"sync"
	"time"

	"app/internal/datadog"
	"app/internal/secrets"
)

// version is the service's version. A release sets it with -ldflags "-X main.version=1.2.3".
var version = "dev"

// buildVersion is the version, with the commit added if the build is not a release.
var buildVersion = sync.OnceValue(func() string {
	info, ok := debug.ReadBuildInfo()
	if version != "dev" || !ok {
		return version
	}
	for _, s := range info.Settings {
		if s.Key == "vcs.revision" {
			return version + "-" + s.Value[:min(12, len(s.Value))]
		}
	}
	return version
})

// shutdownLimit is how long running work may take to finish, out of the 30 s within which the service shuts down.
const shutdownLimit = 20 * time.Second

// App holds what operations work with.
type App struct {
	rollbar    *Rollbar
	store      *Store  // nil if no database is set
	outbox     *outbox // nil without a store
	retention  retention
	queueLimit int // in occurrences
	log        *slog.Logger
	mask       *secrets.Mask
	telemetry  *datadog.Client
}

// newApp returns an App with the settings. It starts the sandbox if they ask for one, but opens no connections.
// The caller closes the telemetry, which may be nil.
func newApp(config *Config, log *slog.Logger, telemetry *datadog.Client) (*App, error) {
	if err := config.startSandbox(); err != nil {
		return nil, err
	}
	mask := config.mask()
	app := &App{
		rollbar:   newRollbar(config.RollbarURL, config.tokens(), config.RollbarTimeout, mask, telemetry),
		retention: retention{config.ReportsKeep, config.OccurrencesKeep}, queueLimit: config.QueueLimit,
		log: log, mask: mask, telemetry: telemetry,
	}
	if config.DatabaseURL == "" {
		return app, nil
	}
	var err error
	if app.store, err = openStore(config.DatabaseURL, config.DatabaseReadURL, telemetry); err != nil {
		return nil, err
	}
	app.outbox = newOutbox(app)
	return app, nil
}

// Close closes the connections. A nil App has none.
func (app *App) Close() {
	if app == nil {
		return
	}
	if app.store != nil {
		app.store.Close()
	}
	app.rollbar.client.CloseIdleConnections()
}

var whichCmd = &Command{
	Name:  "which",
	Route: "GET /which",
	Short: "Print the name and version of the service",
	Open:  true,
	Run:   typed(which),
}

func which(context.Context, *App, struct{}) (Text, error) { return Text("app " + buildVersion()), nil }

var checkCmd = &Command{
	Name:  "check",
	Route: "GET /check",
	Short: "Check whether PostgreSQL answers",
	Long:  "On the command line it asks the server at APP_URL if that is set, or else the database at DATABASE_URL.",
	Open:  true,
	Run:   typed(check),
}

// Health is the result of check: OK or KO.
type Health struct {
	Status string `json:"status" enum:"OK,KO"`
}

func (h Health) outcome() outcome { return map[string]outcome{"OK": done, "KO": outage}[h.Status] }

func (Health) outcomes() []outcome { return []outcome{done, outage} }

func check(ctx context.Context, app *App, _ struct{}) (Health, error) {
	if app.store == nil {
		return Health{}, noDatabase()
	}
	if err := app.store.check(ctx); ctx.Err() != nil {
		return Health{}, ctx.Err()
	} else if err != nil {
		app.log.WarnContext(ctx, "nothing is stored", "error", err) // the response must not say why
		callOf(ctx).notStored(err.Error())
		return Health{"KO"}, nil
	}
	return Health{"OK"}, nil
}
