package main

import (
	"context"
	"fmt"
	"strconv"
)

var itemsSyncCmd = &Command{
	Name:  "items.sync",
	Route: "POST /items/sync",
	Short: "Store all items that the filter chooses as reports",
	Long:  "Reads page after page to the end. With recent, for polling every few minutes, it stops after\nthe first page on which nothing is new and nothing has changed.",
	Run:   typed(itemsSync),
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

func itemsSync(ctx context.Context, app *App, in itemsSyncInput) (Synced, error) {
	store, err := app.database()
	if err != nil {
		return Synced{}, err
	}
	filter := in.values()
	var total Synced
	for {
		filter.Set("page", strconv.FormatInt(total.Pages+1, 10))
		page, err := app.rollbar.Items(ctx, filter)
		if err != nil {
			return total, fmt.Errorf("page %d of the items: %w", total.Pages+1, err)
		}
		if len(page.Items) == 0 {
			return total, nil
		}
		changes, err := store.keep(ctx, page.Items)
		if err != nil {
			return total, err
		}
		app.countReports(len(page.Items), changes)
		total.Items += int64(len(page.Items))
		total.Changed += int64(changes.reports)
		total.Pages++
		callOf(ctx).report("%d items, %d pages", total.Items, total.Pages)
		if in.Recent && changes == (tally{}) {
			return total, nil
		}
	}
}
