package sandbox

import (
	"bytes"
	"crypto/sha1"
	"encoding/json"
	"fmt"
	"maps"
	"strconv"
	"time"
)

const firstID = int64(1_705_000_000) // an item's id is this plus its counter

var users = map[int64]string{5325: "ada", 5326: "grace"}

// seed is what the project is made of. It is invented, but in the shapes of real projects.
var seed = parsed[struct {
	Environments, Frameworks, Levels, Statuses, Titles []string
	Integrations                                       []any
	Bodies                                             []json.RawMessage // of occurrences, with $title
	Item                                               item              // what new items have in common; its numbers are float64
	ListFields, SingleFields                           []string          // of items only in lists, and only in single answers
}]("seed.json")

func pick[T any](from []T, i int) T { return from[i%len(from)] }

// addItem adds the invented item with the number. It depends only on the number and the time.
func (s *Sandbox) addItem(number int) {
	seed := seed()
	title, last := pick(seed.Titles, number), s.settings.Now().Add(-time.Duration(number)*97*time.Minute).Unix()
	if number == 3 {
		s.lastOcc += 1 << 53 // ids need not fit into a float64 forever
	}
	var o *occurrence
	for n := range number%5 + 1 {
		o = s.invent(seedUUID(number, n), last-int64(60*(number%5-n)), fmt.Sprintf(`"title":%q,"fingerprint":%q,"environment":%q,"level":%q,"timestamp":%d,"code_version":"4.%d.0",`+
			`"language":"python","notifier":{"name":"pyrollbar","version":"1.0.0"},"person":{"id":"%d","username":null},`+
			`"request":{"url":"https://shop.example.com/cart?n=%d","method":"GET","user_ip":"192.0.2.7"},`+
			`"custom":{"big":123456789012345678901234567890,"small":1e3,"price":1.10},"body":%s`,
			title, fingerprint(fmt.Sprint(number)), pick(seed.Environments, number*3/2), pick(seed.Levels, number*7/3), last, number%9,
			1000+number, n, bytes.Replace(pick(seed.Bodies, number+n), []byte(`"$title"`), strconv.AppendQuote(nil, title), 1)))
	}
	it := s.items[o.item]
	it["total_occurrences"] = int64(number%5 + 1 + number*number%1000)
	it["framework"], it["status"] = pick(seed.Frameworks, number), pick(seed.Statuses, number)
	it["integrations_data"] = pick(seed.Integrations, number)
	switch it["status"] {
	case "resolved":
		it["last_resolved_timestamp"], it["resolved_in_version"] = last+600, "4.1.7"
	case "muted":
		it["last_muted_timestamp"] = last + 60
	}
	switch group := o.item - int64(number%60-30); {
	case number%60 == 30:
		it["group_status"] = int64(2)
		delete(s.occurrences, o.id) // a group's occurrences are those of its members
	case number%60 == 31 || number%60 == 32:
		it["group_item_id"], it["controlling_id"] = group, group
	case number%4 == 1:
		it["assigned_user_id"], it["unique_occurrences"] = pick([]int64{5325, 5326}, number/4), int64(number%3+1)
	}
}

// invent adds an occurrence that nobody posted. The members are those of its data after the uuid.
func (s *Sandbox) invent(uuid string, at int64, members string) *occurrence {
	o := &occurrence{at: at, data: fmt.Appendf(nil, `{"uuid":%q,%s}`, uuid, members)}
	s.byUUID[uuid] = o
	s.occur(o)
	return o
}

// seedUUID returns the uuid of the nth occurrence of an invented item.
func seedUUID(number, n int) string {
	return fmt.Sprintf("5a4d0000-0000-4000-8000-%06x%06x", number, n)
}

// newItem adds an item with its first occurrence.
func (s *Sandbox) newItem(title, level, environment, hash string, first *occurrence) item {
	counter := int64(len(s.items)+1) + s.skipped
	id := firstID + counter
	it := maps.Clone(seed().Item)
	it["id"], it["counter"], it["controlling_id"], it["title"] = id, counter, id, fmt.Sprintf("%.255s", title)
	it["environment"], it["hash"], it["level"] = environment, hash, level
	it["first_occurrence_id"], it["first_occurrence_timestamp"] = first.id, first.at
	it["activating_occurrence_id"], it["last_activated_timestamp"] = first.id, first.at
	s.items[id] = it
	return it
}

// fingerprint returns Rollbar's fingerprint of a text, its SHA-1.
func fingerprint(text string) string { return fmt.Sprintf("%x", sha1.Sum([]byte(text))) }
