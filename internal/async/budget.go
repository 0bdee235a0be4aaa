package async

import (
	"context"
	"io"
	"runtime"
	"sync"
	"time"
)

// A Budget bounds the bytes that its callers hold at the same time.
type Budget struct {
	Bytes   int           // that may be held in all
	Reserve int           // the part of Bytes that only takes of at most Small may use
	Small   int           // bytes
	Wait    time.Duration // at most, for bytes to become free
	Full    error         // what a take fails with after Wait

	mu        sync.Mutex
	held      int
	collected time.Time
}

// Take waits until n bytes are free, and takes them.
func (b *Budget) Take(ctx context.Context, n int) error {
	for began := time.Now(); !b.take(n); {
		if !Sleep(ctx, 10*time.Millisecond) {
			return ctx.Err()
		}
		if time.Since(began) > b.Wait {
			return b.Full
		}
	}
	return nil
}

func (b *Budget) take(n int) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	free := b.Bytes - b.held
	if n > b.Small {
		free -= b.Reserve
	}
	free = max(free, 0) // callers that Add can take more than there is
	switch {
	case n <= free:
		b.held += n
	case time.Since(b.collected) > 50*time.Millisecond:
		b.collected = time.Now()
		go runtime.GC() // some of what is held may be garbage
	}
	return n <= free
}

// Add takes n bytes that are already in use, or gives bytes back if n is negative.
func (b *Budget) Add(n int) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.held += n
}

// Own takes the bytes of a text until it is garbage-collected.
func (b *Budget) Own(text []byte) {
	if n := cap(text); n > 4<<10 { // counting smaller ones would cost more than they do
		b.Add(n)
		runtime.AddCleanup(&text[:1][0], b.Add, -n)
	}
}

// ReadAll is io.ReadAll for a text that the budget owns. It stops after most+1 bytes. While it reads, it also takes room
// for the given number of copies. A size of 0 means unknown: a text that outgrows a 64th of most then takes all the room
// that it can need at once, so that growing texts do not wait for one another.
func (b *Budget) ReadAll(ctx context.Context, r io.Reader, size, most, copies int) (text []byte, err error) {
	taken := 0
	for err == nil && len(text) <= most {
		if len(text) == cap(text) {
			next := min(max(2*len(text), size+1, 512), most+1) // one byte more, to see the end
			need := next
			if size == 0 && next > most/64 {
				need = most + 1
			}
			if err = b.Take(ctx, (1+copies)*need-taken); err != nil {
				break
			}
			text, taken = append(make([]byte, 0, next), text...), (1+copies)*need
		}
		var n int
		n, err = r.Read(text[len(text):cap(text)])
		text = text[:len(text)+n]
	}
	b.Add(-taken)
	b.Own(text)
	if err == io.EOF {
		err = nil
	}
	return text, err
}
