package main

import (
	"fmt"
	"sync"
	"testing"

	"app/internal/sandbox"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// After an interrupted sync, the next one leaves nothing out.
func TestSyncBeginsAgain(t *testing.T) {
	t.Parallel()
	f := newFixture(t, 450)
	f.sandbox.FailOnly("GET /items/?page=3", -1, sandbox.Error)
	f.do("POST", "/items/sync", "").requireProblem(502, "unavailable")
	assert.Equal(t, "200", f.rows(`SELECT count(*)::text FROM reports`)[0], "what it read before is stored")
	f.sandbox.SetFault(sandbox.None)
	for _, id := range f.sandbox.ItemIDs() {
		f.sandbox.SetItem(id, "title", fmt.Sprint("changed ", id))
	}
	again := f.do("POST", "/items/sync", "")
	require.Equal(t, 200, again.status, again.body)
	assert.Equal(t, f.rows(`SELECT count(DISTINCT item_id)::text FROM reports`)[0], again.at("changed"), again.body)
	assert.Equal(t, "5", again.at("pages"))
	assert.Equal(t, "0", f.do("POST", "/items/sync", "").at("changed"))
}

// A small project costs its pages and the empty one after them: nothing is read ahead in vain.
func TestSyncOfSmallProject(t *testing.T) {
	t.Parallel()
	f := newFixture(t, 150)
	before := len(f.sandbox.Requests())
	require.Equal(t, 200, f.do("POST", "/items/sync", "").status)
	assert.Len(t, f.sandbox.Requests()[before:], 3)
}

// A sync makes its own calls: it does not share a read that another sync began before a change.
func TestSyncBesideAnother(t *testing.T) {
	t.Parallel()
	f := newFixture(t, 3)
	id := f.sandbox.ItemIDs()[0]
	held, release := f.holdNext("GET /items/")
	t.Cleanup(release)
	var first sync.WaitGroup
	first.Go(func() { assert.Equal(t, 200, f.do("POST", "/items/sync", "").status) })
	<-held
	f.sandbox.SetItem(id, "title", "changed")
	assert.Equal(t, 200, f.do("POST", "/items/sync", "").status)
	release()
	first.Wait()
	assert.Equal(t, "current changed", f.history(id, "title")[0])
}
