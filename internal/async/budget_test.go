package async

import (
	"bytes"
	"context"
	"errors"
	"io"
	"runtime"
	"strings"
	"sync"
	"testing"
	"testing/iotest"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

var errFull = errors.New("full")

// Large takes leave the reserve to small ones, and wait until others give bytes back.
func TestBudget(t *testing.T) {
	t.Parallel()
	b := &Budget{Bytes: 100, Reserve: 20, Small: 10, Wait: 30 * time.Millisecond, Full: errFull}
	require.NoError(t, b.Take(t.Context(), 80))
	assert.ErrorIs(t, b.Take(t.Context(), 11), errFull)
	require.NoError(t, b.Take(t.Context(), 10))
	require.NoError(t, b.Take(t.Context(), 10))
	assert.ErrorIs(t, b.Take(t.Context(), 1), errFull)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	assert.ErrorIs(t, b.Take(ctx, 1), context.Canceled)

	b.Wait = time.Minute
	time.AfterFunc(20*time.Millisecond, func() { b.Add(-80) })
	assert.NoError(t, b.Take(t.Context(), 60))
}

// A text counts until it is garbage-collected, which waiting takes trigger.
func TestBudgetOwns(t *testing.T) {
	t.Parallel()
	b := &Budget{Bytes: 1 << 20, Wait: time.Minute, Full: errFull}
	text := make([]byte, 900_000)
	b.Own(text)
	b.Own(nil)
	taken := make(chan error)
	go func() { taken <- b.Take(t.Context(), 500_000) }()
	select {
	case <-taken:
		t.Error("the text is still in use")
	case <-time.After(200 * time.Millisecond):
	}
	runtime.KeepAlive(text)
	assert.NoError(t, <-taken)
}

func TestBudgetReadAll(t *testing.T) {
	t.Parallel()
	const most = 100_000
	for _, n := range []int{0, 1, 4095, 4096, 4097, 99_999, most, most + 1, 3 * most} {
		for _, size := range []int{-1, 0, n, n / 2, most} {
			b := &Budget{Bytes: 1 << 20, Wait: time.Minute, Full: errFull}
			given := iotest.OneByteReader(bytes.NewReader(bytes.Repeat([]byte("x"), n)))
			got, err := b.ReadAll(t.Context(), iotest.DataErrReader(given), size, most, 0)
			require.NoError(t, err)
			assert.Equal(t, min(n, most+1), len(got))
			if cap(got) > 4<<10 {
				assert.Equal(t, cap(got), b.held)
			} else {
				assert.Zero(t, b.held)
			}
		}
	}
	b := &Budget{Bytes: 10_000, Wait: time.Millisecond, Full: errFull}
	_, err := b.ReadAll(t.Context(), strings.NewReader(strings.Repeat("x", 20_000)), 0, most, 0)
	assert.ErrorIs(t, err, errFull)
	b = &Budget{Bytes: 10_000}
	_, err = b.ReadAll(t.Context(), io.MultiReader(strings.NewReader("x"), iotest.ErrReader(io.ErrUnexpectedEOF)), 0,
		most, 0)
	assert.ErrorIs(t, err, io.ErrUnexpectedEOF, "a truncated text is an error")
}

// A slowReader reads slowly and less than it could, so that concurrent reads overlap.
type slowReader struct{ io.Reader }

func (r slowReader) Read(p []byte) (int, error) {
	time.Sleep(time.Millisecond)
	return r.Reader.Read(p[:(len(p)+1)/2])
}

// Many concurrent reads of large texts of unknown size all complete, though one of them stalls.
func TestBudgetReadAllTogether(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const most, size = 250_000, 200_000
		b := &Budget{Bytes: 5 * most, Small: 20_000, Wait: 10 * time.Minute, Full: errFull}
		text := strings.NewReader(strings.Repeat("x", size/2))
		rest, stalled := io.Pipe()
		var all, readers sync.WaitGroup
		all.Go(func() {
			_, err := b.ReadAll(t.Context(), io.MultiReader(text, rest), 0, most, 1)
			assert.ErrorIs(t, err, io.ErrUnexpectedEOF)
		})
		for range 30 {
			readers.Go(func() {
				_, err := b.ReadAll(t.Context(), slowReader{strings.NewReader(strings.Repeat("x", size))}, 0, most, 1)
				assert.NoError(t, err)
			})
		}
		readers.Wait()
		stalled.CloseWithError(io.ErrUnexpectedEOF)
		all.Wait()
	})
}
