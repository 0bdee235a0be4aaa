package main

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"sync/atomic"

	"app/internal/async"
	"app/internal/rawjson"
)

var itemsDeleteCmd = &Command{
	Name:  "items.delete",
	Route: "DELETE /items/{id}",
	Short: "Delete an item's occurrences in Rollbar and resolve the item",
	Long:  "Rollbar cannot delete the item itself. The item and its occurrences are stored first.",
	Confirm: func(item json.RawMessage, _ string) string {
		return fmt.Sprintf("Permanently delete all occurrences of item %s, \"%s\" (%s so far), from Rollbar?",
			rawjson.Get(item, "id"), rawjson.Unquote(rawjson.Get(item, "title")), rawjson.Get(item, "total_occurrences"))
	},
	About:   itemsGetCmd,
	Changes: true,
	Run:     typed(itemsDelete),
}

type itemsDeleteInput struct {
	itemRef
	Max int64 `query:"max" default:"1000" min:"1" max:"5000" help:"refuse to delete an item with more occurrences than this"`
}

type Deleted struct {
	ID          int64  `json:"id"`
	Occurrences int64  `json:"deleted_occurrences"`
	Status      string `json:"status"`
}

// itemsDelete deletes an item in Rollbar's documented way: occurrence by occurrence, since no call deletes an item.
// Then it resolves the item, so that it leaves the active list.
func itemsDelete(ctx context.Context, app *App, in itemsDeleteInput) (Deleted, error) {
	if err := app.rollbar.require(scopeRead, scopeWrite); err != nil {
		return Deleted{}, err
	}
	item, err := app.readItem(ctx, in.itemRef)
	if err != nil {
		return Deleted{}, err
	}
	unstored := app.observe(ctx, item)
	switch {
	case string(rawjson.Get(item.JSON, "group_status")) == "2":
		return Deleted{}, fail(conflict, "item %d is a group: its occurrences belong to its members; delete those", item.ID)
	case unstored != "" && app.store != nil:
		return Deleted{}, fail(unavailable, "nothing is deleted, because item %d must be stored first: %s", item.ID, unstored)
	}
	count, err := app.deleteOccurrences(ctx, item.ID, in.Max)
	switch {
	case err != nil && count == 0:
		return Deleted{}, err
	case err != nil:
		return Deleted{}, fmt.Errorf("item %d, after %d occurrences were deleted: %w", item.ID, count, err)
	}
	if rawjson.Unquote(rawjson.Get(item.JSON, "status")) != "resolved" {
		if _, err := app.change(ctx, item.ID, json.RawMessage(`{"status":"resolved"}`)); err != nil {
			return Deleted{}, fmt.Errorf("after all %d occurrences of item %d were deleted: %w", count, item.ID, err)
		}
	}
	return Deleted{item.ID, count, "resolved"}, nil
}

// deleteOccurrences archives and deletes an item's occurrences and those that arrive meanwhile, unless there are more
// than the maximum. It counts only those that Rollbar still had, since it lists deleted ones for some seconds.
func (app *App) deleteOccurrences(ctx context.Context, item, maximum int64) (int64, error) {
	const rounds = 5 // an item that keeps occurring must not keep this going for ever
	var deleted atomic.Int64
	var failed error
	known := map[int64]bool{}
	for round := 0; failed == nil && round < rounds; round++ {
		ids, err := app.archiveBeforeDelete(ctx, item, maximum, known)
		switch {
		case err != nil || len(ids) == 0:
			return deleted.Load(), err
		case round == 0 && int64(len(ids)) > maximum:
			return 0, fail(conflict, "item %d has more than %d occurrences, so nothing was deleted; raise max (at most 5000)", item, maximum)
		}
		total := deleted.Load() + int64(len(ids))
		remove := func(ctx context.Context, i int64) (bool, error) {
			was, err := app.rollbar.DeleteOccurrence(ctx, ids[i])
			if was {
				callOf(ctx).report(deleted.Add(1), total, "occurrences deleted")
			}
			return was, err
		}
		for _, err := range async.ReadAhead(ctx, 0, int64(len(ids))-1, 4, remove) {
			failed = err
		}
	}
	return deleted.Load(), failed
}

// archiveBeforeDelete lists an item's occurrences until there are more than the maximum, archives the unknown ones
// and returns their ids. Failing to archive them is an error, unless there is no database.
func (app *App) archiveBeforeDelete(ctx context.Context, item, maximum int64, known map[int64]bool) (ids []int64, err error) {
	limit := min(maximum+1, 100)
	for number, more := int64(1), true; more && int64(len(ids)) <= maximum; number++ {
		page, err := app.rollbar.Occurrences(ctx, item, number, limit)
		if err != nil {
			return nil, fmt.Errorf("occurrences of item %d: %w", item, err)
		}
		isFull := int64(len(page)) == limit
		page = slices.DeleteFunc(page, func(o Occurrence) bool { return known[o.ID] })
		more = isFull && len(page) > 0
		if unstored := app.archive(ctx, page...); unstored != "" && app.store != nil {
			return nil, fail(unavailable, "occurrences of item %d are not deleted, because they must be archived first: %s", item, unstored)
		}
		for _, o := range page {
			known[o.ID] = true
			ids = append(ids, o.ID)
		}
	}
	return ids, nil
}
