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

	growing sync.Mutex // held while reading a large text of unknown size: the others wait, so that this one can complete

	mu        sync.Mutex
	held      int
	collected time.Time
}

// Take waits until n bytes are free, and takes them.
func (b *Budget) Take(ctx context.Context, n int) error {
	return b.wait(ctx, func() bool {
		b.mu.Lock()
		defer b.mu.Unlock()
		free := b.Bytes - b.held
		if n > b.Small {
			free -= b.Reserve
		}
		switch {
		case n <= free:
			b.held += n
		case time.Since(b.collected) > 50*time.Millisecond:
			b.collected = time.Now()
			go runtime.GC() // some of what is held may be garbage
		}
		return n <= free
	})
}

func (b *Budget) wait(ctx context.Context, done func() bool) error {
	for began := time.Now(); !done(); {
		if !Sleep(ctx, 10*time.Millisecond) {
			return ctx.Err()
		}
		if time.Since(began) > b.Wait {
			return b.Full
		}
	}
	return nil
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

// ReadAll is io.ReadAll for a text that the budget owns. It stops after most+1 bytes. A size of 0 means unknown.
func (b *Budget) ReadAll(ctx context.Context, r io.Reader, size, most int) (text []byte, err error) {
	taken, grows := 0, false
	for err == nil && len(text) <= most {
		if len(text) == taken {
			next := min(max(2*taken, size+1, 512), most+1) // one byte more, to see the end
			if taken > 0 && next > b.Small && !grows {
				if err = b.wait(ctx, b.growing.TryLock); err != nil {
					break
				}
				grows = true
				defer b.growing.Unlock()
			}
			if err = b.Take(ctx, next-taken); err != nil {
				break
			}
			text, taken = append(make([]byte, 0, next), text...), next
		}
		var n int
		n, err = r.Read(text[len(text):taken])
		text = text[:len(text)+n]
	}
	b.Add(-taken)
	b.Own(text)
	if err == io.EOF {
		err = nil
	}
	return text, err
}
