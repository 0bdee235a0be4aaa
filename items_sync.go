package main

import (
	"context"
	"fmt"
	"maps"
	"math"
	"net/url"
	"strconv"
	"sync/atomic"

	"github.com/jackc/pgx/v5"

	"app/internal/async"
	"app/internal/rawjson"
)

var itemsSyncCmd = &Command{
	Name:  "items.sync",
	Route: "POST /items/sync",
	Short: "Store all matching items of Rollbar as reports",
	Long: "Reads all pages. With recent, which is meant for polling every few minutes, it stops after the first\n" +
		"page on which nothing is new or changed.",
	Run: typed(itemsSync),
}

type itemsSyncInput struct {
	itemFilter
	Recent bool `query:"recent" default:"false" help:"stop after the first page on which nothing is new or changed"`
}

// Synced counts what a sync read: the items, the new reports that they made, and the pages that held items.
type Synced struct {
	Items   int64 `json:"items"`
	Changed int64 `json:"changed"`
	Pages   int64 `json:"pages"`
}

const (
	chunkPages  = 20      // pages that are read and stored together
	chunkBytes  = 4 << 20 // bytes of items; a larger chunk is stored in parts
	chunksAhead = 6       // chunks in progress at the same time
	chunkWrites = 2       // chunks stored at the same time; more would wait for the same index pages
)

// itemsSync reads all pages of items and stores them. After an interruption the next sync starts from the beginning:
// unchanged items that are stored already cost next to nothing.
func itemsSync(ctx context.Context, app *App, in itemsSyncInput) (Synced, error) {
	if err := app.maySync(ctx); err != nil {
		return Synced{}, err
	}
	app.rollbar.reads.Forget() // reads already in flight may lack changes made before this sync
	run := &syncRun{app: app, filter: in.values(), chunkPages: chunkPages, recent: in.Recent,
		isLarge: make(chan struct{}), writes: make(chan struct{}, chunkWrites)}
	ahead := chunksAhead
	if in.Recent { // most likely the first page is the only one
		run.chunkPages, ahead = 1, 1
	}
	var total Synced
	for chunk, err := range async.ReadAhead(ctx, 0, math.MaxInt64, ahead, run.readChunk) {
		if err != nil {
			return Synced{}, err
		}
		total.Items += chunk.Items
		total.Changed += chunk.Changed
		total.Pages += chunk.Pages
		if chunk.isLast || in.Recent && chunk.Changed+chunk.updated == 0 {
			break
		}
	}
	return total, nil
}

// maySync returns an error if a sync has no token or no working database.
func (app *App) maySync(ctx context.Context) error {
	if err := app.rollbar.require(scopeRead); err != nil && app.store != nil { // a missing database is reported first
		return err
	}
	return app.store.write(ctx, func(context.Context, *pgx.Conn) error { return nil })
}

// A syncRun is one sync in progress.
type syncRun struct {
	app        *App
	filter     url.Values
	chunkPages int64
	read       atomic.Int64 // items so far
	recent     bool
	isLarge    chan struct{} // closed once the first chunk has been read and is not the last
	writes     chan struct{} // a semaphore: one element for each chunk that is being stored
}

// A syncChunk is the outcome of several consecutive pages.
type syncChunk struct {
	Synced
	updated int64 // reports whose counters changed
	isLast  bool  // an empty page was among them
}

// readChunk reads and stores the chunk with the given number, from 0. Items read before an error are stored, too.
// Other chunks wait for the first one, so that nothing is read ahead in vain for a small project.
func (s *syncRun) readChunk(ctx context.Context, number int64) (done syncChunk, err error) {
	batch, size := []observation{}, 0
	flush := func(ctx context.Context) error {
		s.writes <- struct{}{}
		defer func() { <-s.writes }()
		stats, err := s.app.store.observe(ctx, batch)
		done.Items += int64(len(batch))
		done.Changed += int64(stats.reports)
		done.updated += int64(stats.updated)
		batch, size = batch[:0], 0
		return err
	}
	if number > 0 {
		select {
		case <-s.isLarge:
		case <-ctx.Done():
			return done, ctx.Err()
		}
	}
	for n := number*s.chunkPages + 1; n <= (number+1)*s.chunkPages; n++ {
		items, err := s.readPage(ctx, n)
		if err != nil {
			_ = flush(context.WithoutCancel(ctx)) // the error to report is Rollbar's
			return done, err
		}
		if len(items) == 0 {
			done.isLast = true
			break
		}
		done.Pages++
		for _, item := range items {
			batch, size = append(batch, observationOf(item)), size+len(item.JSON)
		}
		if size > chunkBytes {
			if err := flush(ctx); err != nil {
				return done, err
			}
		}
	}
	if number == 0 && !done.isLast {
		close(s.isLarge)
	}
	return done, flush(ctx)
}

// readPage reads the page with the given number, at a pace that leaves some of Rollbar's rate limit to others.
func (s *syncRun) readPage(ctx context.Context, number int64) ([]Item, error) {
	if !async.Sleep(ctx, s.app.rollbar.limits[scopeRead].throttle()) {
		return nil, ctx.Err()
	}
	filter := maps.Clone(s.filter)
	filter.Set("page", strconv.FormatInt(number, 10))
	page, err := s.app.rollbar.Items(ctx, filter)
	if err != nil {
		return nil, fmt.Errorf("page %d of the items: %w", number, err)
	}
	if len(page.Items) > 0 {
		total, isCounted := rawjson.Int(page.Total)
		if !isCounted || s.recent { // a recent sync stops earlier
			total = 0
		}
		callOf(ctx).report(s.read.Add(int64(len(page.Items))), total, "items read")
	}
	return page.Items, nil
}
