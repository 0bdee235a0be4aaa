package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net/url"
	"strconv"
	"sync/atomic"

	"github.com/jackc/pgx/v5"
)

var itemsSyncCmd = &Command{
	Name:  "items.sync",
	Route: "POST /items/sync",
	Short: "Store all items that the filter chooses as reports",
	Long: "Reads page after page to the end. What was interrupted less than an hour ago goes on where it was,\nand then looks at the first pages again, as far as something is new or has changed there, and at all of them\nif items have moved up meanwhile.\n" +
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
	chunkPages  = 10      // that are stored together
	chunkBytes  = 4 << 20 // of items that are stored together, or somewhat more
	chunksAhead = 3       // at work at the same time
)

func itemsSync(ctx context.Context, app *App, in itemsSyncInput) (Synced, error) {
	store, err := app.database()
	if err == nil {
		err = app.rollbar.require(scopeRead)
	}
	if err != nil {
		return Synced{}, err
	}
	run := &syncRun{app: app, store: store, filter: in.values(), chunkPages: chunkPages}
	if in.Recent { // most likely the first page is the last
		run.chunkPages = 1
	} else if err := run.goOn(ctx); err != nil {
		return Synced{}, fmt.Errorf("sync: %w", err)
	}
	// A small project is read to its end before anything is read ahead in vain.
	chunk, err := run.readChunk(ctx, 0)
	if err := run.add(ctx, chunk, err); err != nil {
		return run.total, err
	}
	ahead := chunksAhead
	if in.Recent {
		ahead = 1
	}
	isLast := func(c syncChunk) bool { return c.isLast || in.Recent && c.changes == (tally{}) }
	if !isLast(chunk) {
		for chunk, err := range readAhead(ctx, 1, ahead, ahead, run.readChunk) {
			if err := run.add(ctx, chunk, err); err != nil {
				return run.total, err
			}
			if isLast(chunk) {
				break
			}
		}
	}
	if run.noted {
		err = store.endSync(ctx, run.filter)
	}
	if err == nil {
		err = run.readSkipped(ctx)
	}
	return run.total, err
}

// goOn begins with the last page that an interrupted run has stored.
func (s *syncRun) goOn(ctx context.Context) error {
	pages, last, err := s.store.interruptedSync(ctx, s.filter)
	s.noted, s.skipped, s.behind = pages > 0, max(pages-1, 0), last
	s.found = pages == 0
	return err
}

// readSkipped looks at the pages before the one where this run went on: what has changed since the run
// before is on the first of them, as Rollbar shows what was active last first. Where the last item of
// that run was not found again, what was behind it may have moved to any of them.
func (s *syncRun) readSkipped(ctx context.Context) error {
	pages, found := s.skipped, s.found
	s.skipped, s.chunkPages = 0, 1
	for number := range pages {
		chunk, err := s.readChunk(ctx, number)
		if err := s.add(ctx, chunk, err); err != nil {
			return err
		}
		if chunk.isLast || found && chunk.changes == (tally{}) {
			break
		}
	}
	return nil
}

// A syncRun is one sync under way.
type syncRun struct {
	app        *App
	store      *Store
	filter     url.Values
	noted      bool  // how far it has come
	skipped    int64 // pages before the one where it goes on
	behind     int64 // the last item that the interrupted run has stored
	found      bool  // that item, again, or there is none
	chunkPages int64
	total      Synced
	last       int64        // the last item that is stored
	read       atomic.Int64 // pages
}

// A syncChunk is what became of some pages, one behind the other.
type syncChunk struct {
	items, pages int64
	changes      tally
	last         int64 // the last item, 0 for none
	found        bool  // the item behind which this run goes on
	isLast       bool  // an empty page was among them
}

// readChunk reads and stores the chunk with the number, from 0. What was stored before an error is
// in the result.
func (s *syncRun) readChunk(ctx context.Context, number int64) (syncChunk, error) {
	var done syncChunk
	var batch []sighting
	var pages, last int64
	keep := func(ctx context.Context) error {
		changes, err := s.store.keepSightings(ctx, batch)
		if err == nil {
			countReports(s.app.telemetry, len(batch), changes)
			done.items, done.pages, done.last = done.items+int64(len(batch)), done.pages+pages, last
			done.changes.reports += changes.reports
			done.changes.updated += changes.updated
		}
		batch, pages = batch[:0], 0
		return err
	}
	first, size := s.skipped+number*s.chunkPages+1, 0
	for n := first; n < first+s.chunkPages && !done.isLast; n++ {
		items, err := s.readPage(ctx, n)
		if err != nil {
			_ = keep(context.WithoutCancel(ctx)) // what was read before is stored, if that can be
			return done, err
		}
		if done.isLast = len(items) == 0; done.isLast {
			break
		}
		pages++
		for _, item := range items {
			last, done.found = item.ID, done.found || item.ID == s.behind
			sight := sightingOf(item)
			batch, size = append(batch, sight), size+len(sight.data)
		}
		if size > chunkBytes {
			if err := keep(ctx); err != nil {
				return done, err
			}
			size = 0
		}
	}
	return done, keep(ctx)
}

// readPage reads the page with the number, at a pace that leaves others something of Rollbar's
// limit.
func (s *syncRun) readPage(ctx context.Context, number int64) ([]Item, error) {
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
	if len(page.Items) > 0 {
		callOf(ctx).report("%d pages read", s.read.Add(1))
	}
	return page.Items, nil
}

// add counts a chunk, and notes how far the sync has come where it may have to go on from there.
func (s *syncRun) add(ctx context.Context, chunk syncChunk, err error) error {
	s.total.Items += chunk.items
	s.total.Changed += int64(chunk.changes.reports)
	s.total.Pages += chunk.pages
	s.last, s.found = cmp.Or(chunk.last, s.last), s.found || chunk.found
	callOf(ctx).report("%d items stored, %d pages read", s.total.Items, s.read.Load())
	if s.chunkPages == 1 || chunk.isLast || chunk.pages == 0 {
		return err
	}
	last := s.last
	if !s.found {
		last = s.behind // whoever goes on has to find it, too
	}
	s.noted = true
	return cmp.Or(err, s.store.noteSync(context.WithoutCancel(ctx), s.filter, s.skipped+s.total.Pages, last))
}

// interruptedSync returns how many pages a sync with the filter has stored that was interrupted not long
// ago, and the last of its items. Pages of a living list shift, so what is old is no help.
func (s *Store) interruptedSync(ctx context.Context, filter url.Values) (pages, last int64, err error) {
	conn, err := s.writer(ctx)
	if err != nil {
		return 0, 0, err
	}
	defer conn.Release()
	err = conn.QueryRow(ctx, `
		SELECT pages, last_item
		FROM syncs
		WHERE filter = $1 AND at > now() - interval '1 hour'`, filter.Encode()).Scan(&pages, &last)
	if errors.Is(err, pgx.ErrNoRows) {
		err = nil
	}
	return pages, last, databaseError(err)
}

// noteSync notes how many pages a sync has stored, and the last of its items.
func (s *Store) noteSync(ctx context.Context, filter url.Values, pages, last int64) error {
	ctx, cancel := context.WithTimeout(ctx, storeTimeout)
	defer cancel()
	_, err := s.pool.Exec(ctx, `
		INSERT INTO syncs (filter, pages, last_item)
		VALUES ($1, $2, $3)
		ON CONFLICT (filter) DO UPDATE SET pages = excluded.pages, last_item = excluded.last_item, at = now()`,
		filter.Encode(), pages, last)
	return databaseError(err)
}

// endSync notes that a sync has come to its end.
func (s *Store) endSync(ctx context.Context, filter url.Values) error {
	_, err := s.pool.Exec(ctx, `DELETE FROM syncs WHERE filter = $1`, filter.Encode())
	return databaseError(err)
}
