// items_delete.go deletes items. Rollbar has no call for that: its documented way is to delete every
// occurrence. Then the item is resolved, so that it leaves the active list. Both are stored before.
package main

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"

	"app/internal/async"
	"app/internal/rawjson"
)

var itemsDeleteCmd = &Command{
	Name:  "items.delete",
	Route: "DELETE /items/{id}",
	Short: "Delete an item's occurrences and resolve the item",
	Long:  "Rollbar cannot delete the item itself. The item and its occurrences are stored first.",
	Confirm: func(item json.RawMessage, _ string) string {
		return fmt.Sprintf("Permanently delete all occurrences of item %s, %q (%s so far), from Rollbar?",
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

// Deleted is the result of a deletion.
type Deleted struct {
	ID          int64  `json:"id"`
	Occurrences int64  `json:"deleted_occurrences"`
	Status      string `json:"status"`
}

func itemsDelete(ctx context.Context, app *App, in itemsDeleteInput) (Deleted, error) {
	if err := app.rollbar.require(scopeRead, scopeWrite); err != nil {
		return Deleted{}, err
	}
	item, err := app.readItem(ctx, in.itemRef)
	if err != nil {
		return Deleted{}, err
	}
	unstored := app.observeBeforeDelete(ctx, item)
	if string(rawjson.Get(item.JSON, "group_status")) == "2" {
		return Deleted{}, fail(conflict, "item %d is a group: its occurrences belong to its members, delete those", item.ID)
	}
	ids, unarchived, err := app.occurrenceIDs(ctx, item.ID, in.Max)
	if err != nil {
		return Deleted{}, err
	}
	if int64(len(ids)) > in.Max {
		return Deleted{}, fail(conflict, "item %d has more than %d occurrences: nothing is deleted; raise max, up to 5000", item.ID, in.Max)
	}
	if err := cmp.Or(unstored, unarchived); err != nil {
		return Deleted{}, err
	}
	count, err := app.deleteOccurrences(ctx, item.ID, ids)
	if err != nil {
		return Deleted{}, fmt.Errorf("item %d, of which %d occurrences are deleted: %w", item.ID, count, err)
	}
	if rawjson.Unquote(rawjson.Get(item.JSON, "status")) != "resolved" {
		if _, err := app.change(ctx, item.ID, json.RawMessage(`{"status":"resolved"}`)); err != nil {
			return Deleted{}, fmt.Errorf("all %d occurrences of item %d are deleted, but: %w", count, item.ID, err)
		}
	}
	return Deleted{item.ID, count, "resolved"}, nil
}

// observeBeforeDelete stores the item. Its error forbids the deletion; a command line without a database
// deletes all the same.
func (app *App) observeBeforeDelete(ctx context.Context, item Item) error {
	if app.store == nil {
		app.observe(ctx, item) // notes that nothing is stored
		return nil
	}
	if _, err := app.store.observe(ctx, observationsOf([]Item{item})); err != nil {
		callOf(ctx).notStored(err.Error())
		return fmt.Errorf("nothing is deleted, because item %d must be stored first: %w", item.ID, err)
	}
	return nil
}

// occurrenceIDs lists an item's occurrences and archives them, since they are to be deleted. It stops when it
// has more than the maximum. What could not be archived forbids the deletion, unless there is no database.
func (app *App) occurrenceIDs(ctx context.Context, item, maximum int64) (ids []int64, unstored, err error) {
	seen := map[int64]bool{}
	place := occurrencePlace{page: 1}
	for {
		occurrences, more, err := app.rollbar.Occurrences(ctx, item, place, min(maximum+1, 100))
		if err != nil {
			return nil, nil, fmt.Errorf("occurrences of item %d: %w", item, err)
		}
		if app.store != nil && unstored == nil {
			if _, err := app.store.archive(ctx, occurrences); err != nil {
				callOf(ctx).notStored(err.Error())
				unstored = fmt.Errorf("occurrences of item %d are not deleted, because they must be archived first: %w", item, err)
			}
		}
		for _, o := range occurrences {
			if !seen[o.ID] {
				seen[o.ID] = true
				ids = append(ids, o.ID)
			}
		}
		if !more || int64(len(ids)) > maximum {
			return ids, unstored, nil
		}
		place.before = lowestID(occurrences)
	}
}

// deleteRounds bounds how often a deletion looks for new occurrences: an item that keeps occurring must
// not keep it going for ever.
const deleteRounds = 5

// deleteOccurrences deletes the occurrences, and those that come meanwhile, and returns how many it
// deleted. Rollbar still lists deleted ones for some seconds.
func (app *App) deleteOccurrences(ctx context.Context, item int64, ids []int64) (int64, error) {
	gone := map[int64]bool{}
	var count int64
	for round := 0; len(ids) > 0 && round < deleteRounds; round++ {
		n, err := app.deleteAll(ctx, ids, count)
		count += n
		if err != nil {
			return count, err
		}
		for _, id := range ids {
			gone[id] = true
		}
		var unstored error
		if ids, unstored, err = app.occurrenceIDs(ctx, item, int64(len(gone))); err != nil {
			return count, err
		}
		ids = slices.DeleteFunc(ids, func(id int64) bool { return gone[id] })
		if len(ids) > 0 && unstored != nil {
			return count, unstored
		}
	}
	return count, nil
}

// deleteAll deletes the occurrences, a few at a time, and returns how many Rollbar still had. Others were
// deleted before.
func (app *App) deleteAll(ctx context.Context, ids []int64, before int64) (int64, error) {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	var count atomic.Int64
	var workers sync.WaitGroup
	slots := make(chan struct{}, 4)
	for _, id := range ids {
		slots <- struct{}{}
		if ctx.Err() != nil {
			break
		}
		workers.Go(func() {
			defer func() { <-slots }()
			err := async.Protect(func() error {
				was, err := app.rollbar.DeleteOccurrence(ctx, id)
				if was {
					callOf(ctx).report(before+count.Add(1), before+int64(len(ids)), "occurrences deleted")
				}
				return err
			})
			if err != nil {
				cancel(fmt.Errorf("occurrence %d: %w", id, err))
			}
		})
	}
	workers.Wait()
	return count.Load(), context.Cause(ctx)
}
