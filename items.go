package main

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/url"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"

	"app/internal/rawjson"
)

type itemFilter struct {
	Status       []string    `query:"status" enum:"active,resolved,muted,archived" help:"only items with this status (repeatable)"`
	Level        []string    `query:"level" enum:"debug,info,warning,error,critical" help:"only items with this level (repeatable)"`
	Environment  []string    `query:"environment" min:"1" help:"only items in this environment (repeatable)"`
	Framework    []string    `query:"framework" min:"1" help:"only items of this framework (repeatable)"`
	Query        Opt[string] `query:"query" min:"1" help:"search text, as in Rollbar's search box"`
	AssignedUser Opt[string] `query:"assigned_user" min:"1" help:"only items of this assignee: a Rollbar username, assigned or unassigned"`
}

// values returns the filter as Rollbar's query parameters.
func (f itemFilter) values() url.Values {
	values := url.Values{}
	for name, given := range map[string][]string{
		"status": f.Status, "level": f.Level, "environment": f.Environment, "framework": f.Framework,
		"query": {f.Query.Value}, "assigned_user": {f.AssignedUser.Value},
	} {
		if len(given) > 0 && given[0] != "" {
			values[name] = given
		}
	}
	return values
}

var itemsListCmd = &Command{
	Name:  "items.list",
	Route: "GET /items",
	Short: "List Rollbar's items, with their ids and counters",
	Long: "Each page is one call to Rollbar, and its items are stored as reports. An item's counter is its number in\n" +
		"Rollbar's pages and URLs; operations take the id unless they are told otherwise.",
	Columns: "id level status last_occurrence_timestamp total_occurrences title",
	Shape:   Item{},
	Run:     typed(itemsList),
}

type itemsListInput struct {
	itemFilter
	Page  int64      `query:"page" default:"1" min:"1" help:"number of the page"`
	Limit Opt[int64] `query:"limit" min:"1" max:"5000" help:"items per page; Rollbar may return fewer"`
	All   bool       `flag:"all" default:"false" help:"read this page and all after it"`
}

func itemsList(ctx context.Context, app *App, in itemsListInput) (*List, error) {
	list, err := in.read(ctx, app, in.Page)
	if err == nil && in.All {
		followPages(ctx, list, in.Page, func(number int64) (*List, error) { return in.read(ctx, app, number) })
	}
	return list, err
}

// read reads the page with the given number, and stores its items.
func (in *itemsListInput) read(ctx context.Context, app *App, number int64) (*List, error) {
	filter := in.values()
	filter.Set("page", strconv.FormatInt(number, 10))
	if in.Limit.Set {
		filter.Set("limit", strconv.FormatInt(in.Limit.Value, 10))
	}
	page, err := app.rollbar.Items(ctx, filter)
	if err != nil {
		err = fmt.Errorf("page %d of the items: %w", number, err)
		if isRollbarOut(err) && app.store != nil {
			err = fmt.Errorf("%w; the stored items are at /reports?latest=true (app reports list -latest)", err)
		}
		return nil, err
	}
	page.observing.Do(func() { page.unstored = app.observe(ctx, page.Items...) }) // once for all callers that share it
	callOf(ctx).notStored(page.unstored)
	list := &List{
		Name: "items",
		Rows: sliceRows(page.Items, func(item Item) json.RawMessage { return item.JSON }),
		Rest: fmt.Appendf(nil, `{"page":%d,"total_count":%s}`, number, page.Total),
	}
	if number > 1 {
		list.Prev = url.Values{"page": {strconv.FormatInt(number-1, 10)}}
	}
	if !in.isLast(page, number) {
		list.Next = url.Values{"page": {strconv.FormatInt(number+1, 10)}}
	}
	return list, nil
}

// isLast reports whether no page can follow: this one is empty, or the total shows that it is the last. A short page
// need not be the last, since Rollbar may return fewer items than the limit. After page 1 the total decides only if
// earlier pages are probably full: the limit is at most 100, Rollbar's default, or this page reaches it.
func (in *itemsListInput) isLast(page *ItemPage, number int64) bool {
	n := int64(len(page.Items))
	total, counted := rawjson.Int(page.Total)
	size := cmp.Or(in.Limit.Value, 100)
	return n == 0 || counted && (number == 1 && n >= total || size <= max(100, n) && (number-1)*size+n == total)
}

// followPages extends the list, which is the page with the given number, by the items of all later pages up to an
// empty one. Pages of a changing list overlap, so items that were already yielded are skipped.
func followPages(ctx context.Context, list *List, number int64, read func(number int64) (*List, error)) {
	rows, total := list.Rows, int64(0)
	if number == 1 {
		total, _ = rawjson.Int(rawjson.Get(list.Rest, "total_count"))
	}
	list.Prev, list.Next = nil, nil
	list.Rows = func(yield func(json.RawMessage, error) bool) {
		seen := map[string]bool{}
		for {
			isEmpty := true
			for item := range rows {
				isEmpty = false
				id := string(rawjson.Get(item, "id"))
				if !seen[id] && !yield(item, nil) {
					return
				}
				seen[id] = true
			}
			if isEmpty {
				return
			}
			callOf(ctx).report(int64(len(seen)), total, "items")
			number++
			page, err := read(number)
			if err != nil {
				yield(nil, err)
				return
			}
			rows = page.Rows
		}
	}
}

var itemsGetCmd = &Command{
	Name:  "items.get",
	Route: "GET /items/{id}",
	Short: "Show one item of Rollbar, by its id, counter or uuid",
	Long:  "The item is stored as a report.",
	Shape: Item{},
	Run:   typed(itemsGet),
}

type itemsGetInput struct {
	itemRef
	Source string `query:"source" default:"auto" enum:"auto,live,archive" help:"where to read it: Rollbar, or its report while Rollbar does not answer (auto); only Rollbar (live); only its report (archive, by id)"`
}

func (in *itemsGetInput) check() error {
	if in.Source == "archive" && in.By != "id" {
		return invalidField("by", "must be id, since source is archive")
	}
	return in.itemRef.check()
}

// An itemRef says which item is meant.
type itemRef struct {
	ID string `path:"id" json:"-" help:"the item's id, counter or uuid (see by)"`
	By string `query:"by" json:"-" default:"id" enum:"id,counter,uuid" help:"how to find the item: by its id, its counter in the project, or the uuid of one of its occurrences"`
}

var uuidForm = regexp.MustCompile(`(?i)^[0-9a-f]{8}-?[0-9a-f]{4}-?[0-9a-f]{4}-?[0-9a-f]{4}-?[0-9a-f]{12}$`)

func (in *itemRef) check() error {
	isUUID := uuidForm.MatchString(in.ID)
	if in.By == "uuid" && !isUUID {
		return invalidField("id", "must be a UUID, since by is uuid")
	}
	if n, err := (literal{text: in.ID}).int(); in.By != "uuid" && (err != nil || n < 1) {
		message := "must be a whole number at least 1, since by is " + in.By
		if isUUID {
			message += "; -by uuid (?by=uuid) finds the item of an occurrence"
		}
		return invalidField("id", message)
	}
	return nil
}

// describe adds to an error which item it is about, and how else to find it. Nil stays nil.
func (in *itemRef) describe(err error) error {
	switch {
	case err == nil:
		return nil
	case in.By == "id" && isKind(err, notFound):
		return fmt.Errorf("item with the id %s: %w (-by counter or ?by=counter finds an item by its counter)", in.ID, err)
	}
	return fmt.Errorf("item with the %s %s: %w", in.By, in.ID, err)
}

func (app *App) readItem(ctx context.Context, in itemRef) (Item, error) {
	item, err := app.rollbar.Item(ctx, in.By, in.ID)
	return item, in.describe(err)
}

// itemID returns the item's id. If a counter or uuid is given instead, it reads the item to find the id.
func (app *App) itemID(ctx context.Context, in itemRef) (int64, error) {
	if in.By == "id" {
		return strconv.ParseInt(in.ID, 10, 64) // valid: check has parsed it
	}
	item, err := app.readItem(ctx, in)
	if err == nil {
		app.observe(ctx, item)
	}
	return item.ID, err
}

func itemsGet(ctx context.Context, app *App, in itemsGetInput) (json.RawMessage, error) {
	if in.Source == "archive" {
		return app.lastKnownItem(ctx, in.ID)
	}
	item, err := app.readItem(ctx, in.itemRef)
	if isRollbarOut(err) && in.By == "id" && in.Source == "auto" {
		if known, unknown := app.lastKnownItem(ctx, in.ID); unknown == nil {
			return known, nil
		}
	}
	if err != nil {
		return nil, err
	}
	app.observe(ctx, item)
	return item.JSON, nil
}

// isRollbarOut reports whether Rollbar is down, slow or limiting us, rather than refusing the call.
func isRollbarOut(err error) bool {
	return isKind(err, badGateway, unavailable, upstreamTimeout, rateLimited)
}

// lastKnownItem returns the item from its current report, and marks the call as answered from the archive.
func (app *App) lastKnownItem(ctx context.Context, id string) (item json.RawMessage, err error) {
	var lastSeen time.Time
	err = app.store.write(ctx, func(ctx context.Context, conn *pgx.Conn) error {
		return conn.QueryRow(ctx, `
			SELECT data, greatest(last_seen, (SELECT s.last_seen FROM seen s WHERE s.report_id = r.id))
			FROM reports r
			WHERE item_id = @id::text::bigint AND state = 'current'`,
			pgx.NamedArgs{"id": id}).Scan((*[]byte)(&item), &lastSeen)
	})
	switch {
	case errors.Is(err, pgx.ErrNoRows):
		return nil, fail(notFound, "there is no current report of item %s", id)
	case err != nil:
		return nil, fmt.Errorf("item %s: %w", id, err)
	}
	callOf(ctx).fromArchive(lastSeen)
	return item, nil
}

var itemsUpdateCmd = &Command{
	Name:    "items.update",
	Route:   "PATCH /items/{id}",
	Also:    "PUT /items/{id}",
	Short:   "Change an item in Rollbar and show the result",
	Changes: true,
	Shape:   Item{},
	Run:     typed(itemsUpdate),
}

type itemsUpdateInput struct {
	itemRef
	Status            Opt[string] `json:"status,omitzero" enum:"active,resolved,muted" help:"new status"`
	Level             Opt[string] `json:"level,omitzero" enum:"debug,info,warning,error,critical" help:"new level"`
	Title             Opt[string] `json:"title,omitzero" min:"1" max:"255" help:"new title"`
	ResolvedInVersion Opt[string] `json:"resolved_in_version,omitzero" max:"40" help:"version in which the item is resolved (only with status resolved)"`
	AssignedUserID    Opt[int64]  `json:"assigned_user_id,omitzero" null:"true" help:"id of the user to assign the item to; null for none"`
	AssignedTeamID    Opt[int64]  `json:"assigned_team_id,omitzero" null:"true" help:"id of the team to assign the item to; null for none"`
	SnoozeEnabled     Opt[bool]   `json:"snooze_enabled,omitzero" help:"whether to snooze the item"`
	SnoozeExpiration  Opt[int64]  `json:"snooze_expiration_in_seconds,omitzero" min:"1" help:"how many seconds to snooze the item"`
}

func (in *itemsUpdateInput) check() error {
	switch {
	case *in == itemsUpdateInput{itemRef: in.itemRef}:
		return fail(invalid, "nothing to change: give at least one of %s", strings.Join(itemsUpdateCmd.names(inBody), ", "))
	case in.ResolvedInVersion.Set && in.Status.Value != "resolved":
		return invalidField("resolved_in_version", "is valid only together with status resolved")
	}
	return in.itemRef.check()
}

func itemsUpdate(ctx context.Context, app *App, in itemsUpdateInput) (json.RawMessage, error) {
	if err := app.rollbar.require(scopeWrite, scopeRead); err != nil {
		return nil, err
	}
	id, err := app.itemID(ctx, in.itemRef)
	if err != nil {
		return nil, err
	}
	changes, _ := json.Marshal(in) // never fails
	item, err := app.change(ctx, id, changes)
	return item, in.describe(err)
}

// change changes an item at Rollbar and reads it again, since Rollbar returns only the changed fields. It stores
// the item as read, with those fields that were sent and returned but that the read lacks.
func (app *App) change(ctx context.Context, id int64, changes json.RawMessage) (json.RawMessage, error) {
	echo, err := app.rollbar.UpdateItem(ctx, id, changes)
	if err != nil {
		return nil, err
	}
	item, err := app.rollbar.Item(ctx, "id", strconv.FormatInt(id, 10))
	if err != nil {
		return nil, fmt.Errorf("the item was changed, but could not be read again: %w", err)
	}
	said := Item{ID: item.ID, JSON: item.JSON} // as of now, the end of the update
	for name, value := range rawjson.Members(echo) {
		if rawjson.Get(item.JSON, name) == nil && rawjson.Get(changes, name) != nil {
			said.JSON = rawjson.Set(said.JSON, name, value)
		}
	}
	app.observe(ctx, said)
	return item.JSON, nil
}

var itemsOccurrencesCmd = &Command{
	Name:    "items.occurrences",
	Route:   "GET /items/{id}/occurrences",
	Short:   "List an item's occurrences in Rollbar, newest first",
	Long:    "Each page is one call to Rollbar. The stack trace or the message is in data.body.",
	Columns: occurrenceColumns,
	Shape:   Occurrence{},
	Run:     typed(itemsOccurrences),
}

type itemsOccurrencesInput struct {
	itemRef
	Limit  int64                `query:"limit" default:"20" min:"1" max:"5000" help:"occurrences per page"`
	Cursor Opt[occurrencePlace] `query:"cursor" help:"cursor of the page, from next or a Link header"`
}

// An occurrencePlace is a page number of an item's occurrences, and the id of the last one on the page before, or 0.
type occurrencePlace struct{ page, last int64 }

// String returns the place as callers see it: opaque, like a rowCursor.
func (p occurrencePlace) String() string { return rowCursor{p.page, p.last}.String() }

func (p *occurrencePlace) UnmarshalText(text []byte) error {
	var numbers rowCursor
	err := numbers.UnmarshalText(text)
	*p = occurrencePlace{numbers.before, numbers.from}
	return err
}

func itemsOccurrences(ctx context.Context, app *App, in itemsOccurrencesInput) (*List, error) {
	place := in.Cursor.Value
	place.page = max(1, place.page)
	id, err := app.itemID(ctx, in.itemRef)
	if err != nil {
		return nil, err
	}
	page, err := app.rollbar.Occurrences(ctx, id, place.page, in.Limit)
	if err != nil {
		return nil, fmt.Errorf("occurrences: %w", in.describe(err))
	}
	app.archive(ctx, page...)
	shown := slices.IndexFunc(page, func(o Occurrence) bool { return o.ID == place.last }) // found if newer ones moved it to this page
	list := &List{Name: "occurrences", Rows: sliceRows(page[shown+1:], func(o Occurrence) json.RawMessage { return o.JSON })}
	switch {
	case place.page > 2:
		list.Prev = url.Values{"cursor": {occurrencePlace{page: place.page - 1}.String()}}
	case place.page == 2:
		list.Prev = url.Values{"cursor": nil}
	}
	if n := len(page); int64(n) == in.Limit {
		list.Next = url.Values{"cursor": {occurrencePlace{place.page + 1, page[n-1].ID}.String()}}
	}
	list.Rest = restWithCursor(list.Next)
	return list, nil
}
