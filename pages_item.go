package main

import (
	"bytes"
	"encoding/json"
	"html/template"
	"math"
	"slices"
	"strconv"
	"strings"

	"app/internal/rawjson"
)

// How many reports and occurrences the page of an item shows. The lists that it links to have the others.
const shownStates, shownOccurrences = 20, 5

// A thingView is a thing with a template of its own. The template reads its members with templateFuncs.
type thingView struct {
	Page *page
	JSON json.RawMessage
}

// An itemView is an item with its history and its latest occurrences.
type itemView struct {
	thingView
	Change      *form
	History     []state
	Occurrences []thingView
	AllURL      string // of all its occurrences
	Errors      []string
}

// A state is a report in the history of an item.
type state struct {
	thingView
	IsFirst bool // the oldest that is left
	Changes []fieldChange
}

type fieldChange struct{ Old, New member }

// item returns the view of an item. Parts that cannot be read are left out, and the page says why.
func (p *page) item(item json.RawMessage) *itemView {
	v := &itemView{thingView: thingView{p, item}, AllURL: "/occurrences?item_id=" + p.id}
	if why := p.w.call.unstored.Load(); why != nil {
		v.Errors = []string{string(p.w.mask.Bytes([]byte(*why)))}
	} else {
		v.History = p.history(v.read("GET /reports", shownStates+1, "item_id"))
		v.Occurrences = v.read("GET /occurrences", shownOccurrences, "item_id")
	}
	if len(v.Occurrences) == 0 && p.w.call.lastSeen.Load() == nil { // none is archived, but Rollbar may have some
		v.Occurrences, v.AllURL = v.read("GET /items/{id}/occurrences", shownOccurrences, "id"), "/items/"+p.id+"/occurrences"
	}
	if c := p.find("PATCH /items/{id}"); c != nil {
		v.Change = new(p.form(c, nil))
	}
	return v
}

// read returns the first elements of the list that a route gives for the item, or nil if the caller has no such route.
func (v *itemView) read(route string, limit int, key string) (things []thingView) {
	p := v.Page
	c := p.find(route)
	if c == nil {
		return nil
	}
	given := map[string][]literal{key: literals(p.id), "limit": literals(strconv.Itoa(limit))}
	list, err := c.run(withCall(p.w.request.Context(), &p.w.call), p.server.app, arguments{given, paramName})
	if err == nil {
		for row, failure := range list.(*List).Rows {
			if err = failure; err == nil {
				things = append(things, thingView{p, slices.Clone(row)})
			}
		}
	}
	if err != nil {
		v.Errors = append(v.Errors, p.detail(err))
	}
	return things
}

// history compares each report with the state before it. A report beyond shownStates serves only for comparison.
func (p *page) history(reports []thingView) (states []state) {
	var before json.RawMessage
	for _, report := range slices.Backward(reports) {
		s := state{thingView: report}
		switch rawjson.Unquote(rawjson.Get(report.JSON, "state")) {
		case "current", "superseded": // others are occurrences that were created here
			now := rawjson.Get(report.JSON, "data")
			s.IsFirst, s.Changes, before = before == nil, p.changes(before, now), now
		}
		states = slices.Insert(states, 0, s)
	}
	return states[:min(len(states), shownStates)]
}

// changes returns the fields that both states have and that differ. Of the counters only total_occurrences counts.
func (p *page) changes(old, now json.RawMessage) (changes []fieldChange) {
	for name, is := range rawjson.Members(now) {
		was := rawjson.Get(old, name)
		if was != nil && !rawjson.Equal(was, is) && (name == "total_occurrences" || !slices.Contains(counters, name)) {
			changes = append(changes, fieldChange{p.Member("", name).Of(was), p.Member("", name).Of(is)})
		}
	}
	return changes
}

// A codeLine is a line of source code with its number.
type codeLine struct {
	Number    int64
	Text      string
	IsCurrent bool
}

// codeLines returns a frame's line of code with the lines around it.
func codeLines(frame json.RawMessage) (lines []codeLine) {
	number, _ := rawjson.Int(rawjson.Get(frame, "lineno"))
	pre := rawjson.Elements(rawjson.Get(frame, "context", "pre"))
	all := slices.Concat(pre, []json.RawMessage{get(frame, "code")}, rawjson.Elements(get(frame, "context.post")))
	for i, code := range all {
		if code != nil {
			lines = append(lines, codeLine{number - int64(len(pre)-i), text(code), i == len(pre)})
		}
	}
	return lines
}

// templateFuncs read JSON, and accept any value.
var templateFuncs = template.FuncMap{
	"get": get, "text": text, "indented": indented, "elements": rawjson.Elements, "codeLines": codeLines,
	"names": strings.Fields, "members": rawjson.Members, "most": most, "scaled": scaled, "last": lastName,
	"headline": func(thing json.RawMessage) string { return textOrDash(columnValue(thing, "title")) },
	"backwards": func(array json.RawMessage) []json.RawMessage {
		elements := rawjson.Elements(array)
		slices.Reverse(elements)
		return elements
	},
}

const longestText = 10_000 // bytes of one value that a page shows

// text returns a JSON value as text: a string without its quotes.
func text(value json.RawMessage) string {
	if len(value) > 0 && value[0] == '"' {
		return shorten(rawjson.Unquote(value), longestText)
	}
	return shorten(string(value[:min(len(value), longestText+1)]), longestText)
}

// textOrDash is text, or a dash if there would be nothing to see or click.
func textOrDash(value json.RawMessage) string {
	if text := text(value); !rawjson.IsNull(value) && strings.TrimSpace(text) != "" {
		return text
	}
	return "–"
}

// indented returns a JSON value as text on several lines.
func indented(value json.RawMessage) string {
	if len(value) > longestText {
		return text(value)
	}
	var lines bytes.Buffer
	_ = json.Indent(&lines, value, "", "  ") // it is valid
	return shorten(lines.String(), longestText)
}

// get returns the value at a path such as data.body, or nil if it is missing or null.
func get(object json.RawMessage, path string) json.RawMessage {
	if value := rawjson.Get(object, strings.Split(path, ".")...); !rawjson.IsNull(value) {
		return value
	}
	return nil
}

// most returns the largest number among the values, or among their members with the name.
func most(values json.RawMessage, name ...string) (largest int64) {
	rows := rawjson.Elements(values)
	for _, value := range rawjson.Members(values) {
		rows = append(rows, value)
	}
	for _, row := range rows {
		n, _ := rawjson.Int(rawjson.Get(row, name...))
		largest = max(largest, n)
	}
	return largest
}

// scaled returns a number as a percentage of the largest one.
func scaled(value json.RawMessage, largest int64) float64 {
	n, _ := rawjson.Int(value)
	return math.Round(1000*float64(n)/float64(max(1, largest))) / 10
}
