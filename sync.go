package main

import (
	"context"
	"errors"
	"fmt"
	"net/url"
	"strconv"

	"github.com/jackc/pgx/v5"
)

var itemsSyncCmd = &Command{
	Name:  "items.sync",
	Route: "POST /items/sync",
	Short: "Store all items that the filter chooses as reports",
	Long: "Reads page after page to the end. What was interrupted less than an hour ago goes on where it was.\n" +
		"With recent, for polling every few minutes, it stops after the first page on which nothing is new\nand nothing has changed.",
	Run: typed(itemsSync),
}

type itemsSyncInput struct {
	itemFilter
	Recent bool `query:"recent" default:"false" help:"stop after a page on which nothing is new or changed"`
}

// Synced counts what a sync read: items, reports that are new by them, and pages with items.
type Synced struct {
	Items   int64 `json:"items"`
	Changed int64 `json:"changed"`
	Pages   int64 `json:"pages"`
}

const (
	syncAhead = 16   // pages that are there before they are wanted
	syncCalls = 3    // of Rollbar at the same time
	syncBatch = 1000 // items that are stored together
)

func itemsSync(ctx context.Context, app *App, in itemsSyncInput) (Synced, error) {
	store, err := app.database()
	if err != nil {
		return Synced{}, err
	}
	run := &syncRun{app: app, store: store, filter: in.values()}
	ahead, calls, batch := syncAhead, syncCalls, syncBatch
	if in.Recent { // most likely the first page is the last
		ahead, calls, batch = 1, 1, 1
	} else if run.skipped, err = store.syncedPages(ctx, run.filter); err != nil {
		return Synced{}, fmt.Errorf("sync: %w", err)
	}
	for page, err := range readAhead(ctx, run.skipped+1, ahead, calls, run.read) {
		if err != nil { // what was read before is not lost
			if err := run.keep(context.WithoutCancel(ctx), true); err != nil {
				app.log.WarnContext(ctx, "what the sync had read was not stored", "error", err)
			}
			return run.total, err
		}
		run.batch, run.pages = append(run.batch, page...), run.pages+min(1, int64(len(page)))
		isLast := len(page) == 0
		if len(run.batch) < batch && !isLast {
			continue
		}
		if err := run.keep(ctx, !isLast && !in.Recent); err != nil {
			return run.total, err
		}
		if isLast || in.Recent && run.changes == (tally{}) {
			break
		}
	}
	if in.Recent {
		return run.total, nil
	}
	return run.total, store.endSync(ctx, run.filter)
}

// A syncRun is one sync under way.
type syncRun struct {
	app     *App
	store   *Store
	filter  url.Values
	skipped int64 // pages that the interrupted run before has stored

	batch   []sighting // read, but not stored
	pages   int64      // that the batch ends
	changes tally      // by the batch before
	total   Synced
}

// read reads the page with the number, at a pace that leaves others something of Rollbar's limit.
func (s *syncRun) read(ctx context.Context, number int64) ([]sighting, error) {
	if !sleep(ctx, s.app.rollbar.allowed.politeWait(scopeRead)) {
		return nil, ctx.Err()
	}
	filter := url.Values{"page": {strconv.FormatInt(number, 10)}}
	for name, values := range s.filter {
		filter[name] = values
	}
	page, err := s.app.rollbar.Items(ctx, filter)
	if err != nil {
		return nil, fmt.Errorf("page %d of the items: %w", number, err)
	}
	return sightingsOf(page.Items), nil
}

// keep stores the batch and, where the sync goes on, notes how far it has come.
func (s *syncRun) keep(ctx context.Context, goesOn bool) error {
	if len(s.batch) == 0 {
		return nil
	}
	changes, err := s.store.keepSightings(ctx, s.batch)
	if err == nil && goesOn {
		err = s.store.noteSync(ctx, s.filter, s.skipped+s.pages)
	}
	if err != nil {
		return err
	}
	s.app.countReports(len(s.batch), changes)
	s.total.Items += int64(len(s.batch))
	s.total.Changed += int64(changes.reports)
	s.total.Pages = s.pages
	s.changes, s.batch = changes, s.batch[:0]
	callOf(ctx).report("%d items, %d pages", s.total.Items, s.skipped+s.total.Pages)
	return nil
}

// syncedPages returns how many pages a sync with the filter has stored that was interrupted not long
// ago. Pages of a living list shift, so what is old is no help.
func (s *Store) syncedPages(ctx context.Context, filter url.Values) (pages int64, err error) {
	conn, err := s.writer(ctx)
	if err != nil {
		return 0, err
	}
	defer conn.Release()
	err = conn.QueryRow(ctx, `
		SELECT pages
		FROM syncs
		WHERE filter = $1 AND at > now() - interval '1 hour'`, filter.Encode()).Scan(&pages)
	if errors.Is(err, pgx.ErrNoRows) {
		err = nil
	}
	return pages, databaseError(err)
}

// noteSync notes how many pages a sync has stored.
func (s *Store) noteSync(ctx context.Context, filter url.Values, pages int64) error {
	_, err := s.pool.Exec(ctx, `
		INSERT INTO syncs (filter, pages)
		VALUES ($1, $2)
		ON CONFLICT (filter) DO UPDATE SET pages = excluded.pages, at = now()`, filter.Encode(), pages)
	return databaseError(err)
}

// endSync notes that a sync has come to its end.
func (s *Store) endSync(ctx context.Context, filter url.Values) error {
	_, err := s.pool.Exec(ctx, `DELETE FROM syncs WHERE filter = $1`, filter.Encode())
	return databaseError(err)
}
